"""An evaluation in Markdown."""

from collections.abc import Mapping

from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.hacking import HackingComparison
from pipeline.statistics import PairedComparison


def reward_table(comparisons: Mapping[str, PairedComparison], first: str = "reward") -> str:
    """A row per reward; `first` is the title of the column of their names."""
    lines = [
        f"| {first} | base | aligned | difference | 95 % interval | win rate | pairs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in comparisons.items():
        lines.append(
            f"| {name} | {row.base_mean:.4f} | {row.aligned_mean:.4f} | {row.difference:+.4f} | "
            f"[{row.low:+.4f}, {row.high:+.4f}] | {row.win_rate:.3f} | {row.pairs} |"
        )
    return "\n".join(lines)


def hacking_table(measures: Mapping[str, HackingComparison]) -> str:
    """A row per measure."""
    lines = [
        "| measure | base | aligned | change | 95 % interval | base's own spread | moved |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in measures.items():
        spread = "–" if row.spread is None else f"{row.spread:.2g}"
        told = "–" if row.moved is None else "yes" if row.moved else "no"
        lines.append(
            f"| {name} | {row.base:.4g} | {row.aligned:.4g} | {row.aligned - row.base:+.2g} | "
            f"[{row.low:+.2g}, {row.high:+.2g}] | {spread} | {told} |"
        )
    return "\n".join(lines)


def evaluation_text(evaluation: Evaluation) -> str:
    """All tables of one adapter and the verdict."""
    parts = [reward_table(evaluation.rewards)]
    if evaluation.aspects:
        parts.append(reward_table(evaluation.aspects, first="aspect"))
    return "\n\n".join([*parts, hacking_table(evaluation.hacking), evaluation.verdict])
