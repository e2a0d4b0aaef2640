"""The tables as Markdown, under what each of them asks."""

import math
from collections.abc import Callable
from typing import Any

from pipeline.claims.guided import PAPER_SHARES
from pipeline.claims.intervals import Interval

Result = dict[str, Any]
"""What the file of a table holds: its rows, and what they were made from."""


def claims_page(results: dict[str, Result]) -> str:
    """The page of those tables that were made, by name."""
    return "\n".join(["# The paper's claims", *(SECTIONS[name](results[name]) for name in SECTIONS if name in results)])


def _order(result: Result) -> str:
    rows = [
        (
            row["remaining_steps"],
            _share(row["disagree"]),
            f"{least_disagreement(row['final_disagree']['mean']):.3f}",
            _share(row["final_disagree"]),
            row["pairs"],
        )
        for row in result["rows"]
    ]
    return _section(
        "Step-wise order and final order",
        "Two candidates drawn from one noisy latent at each step, ordered by their step-wise rewards, and by the "
        "rewards of the images they become. How often the orders differ; how often those of the best ranking at that "
        "step would, at least; and how often the order of the images differs when the same candidates are finished "
        "again, with other noise, from the mean of which that bound is estimated.",
        ("steps that remain", "step-wise against final", "at least", "final against final again", "pairs"),
        rows,
        result,
    )


def least_disagreement(final_disagree: float) -> float:
    """In what share of pairs any ranking of candidates differs from that of finished images, at least.

    If the better candidate of a pair ends better with probability p, two finishes of the pair differ in order with
    probability 2p(1 - p), and the best ranking from one finish with 1 - p. So (1 - sqrt(1 - 2f)) / 2 bounds the mean of
    the latter, by Jensen's inequality, where f is that of the former, `final_disagree`; 1/2 for f of 1/2 or more.
    """
    return 0.5 * (1 - math.sqrt(max(0.0, 1 - 2 * final_disagree)))


def _guidance(result: Result) -> str:
    rows = [
        (
            row["remaining_steps"],
            _share(row["raised"]),
            PAPER_SHARES.get(row["remaining_steps"], "") if result["num_steps"] == 20 else "",
            _share(row["move"]),
            row["samples"],
        )
        for row in result["rows"]
    ]
    return _section(
        "Guided samples whose reward rose",
        "The winner moved along the reward's gradient: how often its step-wise reward rises, and how far it moves "
        "in units of the step's noise, ‖w+ − w‖ / (σ √d). *Paper*: Stable Diffusion v1.5, Table 1.",
        ("steps that remain", "reward rose", "paper", "move", "samples"),
        rows,
        result,
    )


def _steps(result: Result) -> str:
    return _arms(result, "Number of trained steps", "TailorPO without guidance, at equal trajectories (Table 5).")


def _strength(result: Result) -> str:
    return _arms(result, "Guidance strength", "TailorPO-G with η rising from the first to the second value (Table 6).")


def _arms(result: Result, title: str, text: str) -> str:
    names = list(result["rows"][0]["rewards"])
    rows = [
        (
            row["label"],
            ", ".join(map(str, row["trained_steps"])),
            *(_change(row["rewards"][name]) for name in names),
            "" if row["raised"] is None else f"{row['raised']:.3f}",
            "" if row["move"] is None else f"{row['move']:.3f}",
            row["trajectories"],
            f"{row['network_calls_per_trajectory']:g}",
            row["optimiser_steps"],
            f"{row['train_seconds']:.0f}",
        )
        for row in result["rows"]
    ]
    pairs = result["rows"][0]["rewards"][names[0]]["pairs"]
    return _section(
        title,
        f"{text} Held-out rewards: aligned less base, over {pairs} pairs of the same prompts and noise. The intervals "
        "are over the prompts, with all their pairs, of one run each; how runs of other seeds differ they do not tell.",
        (
            "run",
            "trained steps",
            *names,
            "reward rose",
            "move",
            "trajectories",
            "network calls each",
            "optimiser steps",
            "seconds",
        ),
        rows,
        result,
    )


def _section(title: str, text: str, header: tuple[str, ...], rows: list[tuple[Any, ...]], result: Result) -> str:
    lines = [header, ("---",) * len(header), *rows]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    source = f"`{result['configuration']}` with seed {result['seed']}, in {result['seconds']:.0f} s"
    note = f"Brackets are 95 % bootstrap intervals. Made from {source}."
    return f"\n## {title}\n\n{text}\n\n{table}\n\n{note}\n"


def _share(interval: Interval) -> str:
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _change(row: dict[str, float]) -> str:
    return f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


SECTIONS: dict[str, Callable[[Result], str]] = {
    "order": _order,
    "guidance": _guidance,
    "steps": _steps,
    "strength": _strength,
}
"""The tables by name, in the order of the page."""
