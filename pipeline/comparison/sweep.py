"""Which learning rate a sweep chose, and the prompts that it was chosen on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.comparison.plan import SWEEP_FOLDER, SWEEP_PROMPTS, Cell, Plan
from pipeline.prompt_sets import PromptSets
from pipeline.prompts import load_train_prompts
from pipeline.report.evaluation_file import RewardComparison, read_evaluation
from pipeline.run_folder import SUMMARY_FILE, write_text


@dataclass(frozen=True)
class SweepResult:
    """A short run of the sweep: base against aligned, by the reward that it trained on."""

    cell: str
    learning_rate: float
    iterations: int
    comparison: RewardComparison


def sweep_prompts(plan: Plan, prompts: PromptSets) -> list[str]:
    """What a sweep is judged by, in an order of its seed; none of it is in the final evaluation.

    Args:
        prompts: those that the runs of the comparison train on, and those of the final evaluation.

    Raises:
        ValueError: no prompt is left.
    """
    sweep = plan.comparison.sweep
    assert sweep is not None, "asked for without a sweep"
    candidates = prompts.train if sweep.prompts is None else load_train_prompts(sweep.prompts)
    held_out = set(prompts.held_out)
    left = [prompt for prompt in dict.fromkeys(candidates) if prompt not in held_out]
    if not left:
        source = "that the runs train on" if sweep.prompts is None else f"of sweep.prompts={sweep.prompts}"
        raise ValueError(
            f"the prompts {source} are all among those of the final evaluation, which must not choose learning rates; "
            "name others by sweep.prompts, or by prompts.held_out of the base run"
        )
    order = np.random.default_rng(sweep.seed).permutation(len(left))
    return [left[index] for index in order]


def write_sweep_prompts(plan: Plan, prompts: PromptSets) -> None:
    """Write `sweep_prompts` where the runs of the sweep look for them.

    Raises:
        ValueError: no prompt is left.
    """
    write_text(plan.folder / SWEEP_FOLDER / SWEEP_PROMPTS, "\n".join(sweep_prompts(plan, prompts)) + "\n")


def read_sweep(plan: Plan) -> list[SweepResult]:
    """What the finished runs of the sweep found, cell by cell and from the lowest learning rate."""
    return [result for cell in plan.cells for result in _results_of(cell)]


def chosen_learning_rates(plan: Plan, results: Sequence[SweepResult]) -> dict[str, float]:
    """The learning rate of every cell whose sweep is complete, by its label.

    The reward must rise most, on prompts and noise that all of them share; of equals the smaller wins.
    """
    chosen = {}
    for cell in plan.cells:
        own = [result for result in results if result.cell == cell.label]
        if not cell.sweep:
            chosen[cell.label] = cell.settings.learning_rate
        elif len(own) == len(cell.sweep):
            chosen[cell.label] = max(own, key=lambda one: (one.comparison.difference, -one.learning_rate)).learning_rate
    return chosen


def _results_of(cell: Cell) -> list[SweepResult]:
    results = []
    for rate, run in cell.sweep.items():
        evaluation = read_evaluation(run.folder)
        if evaluation is not None:
            # What is trained on, be it one reward or a sum, comes first.
            comparison = next(iter(evaluation.rewards.values()))
            results.append(SweepResult(cell.label, rate, _iterations(run.folder), comparison))
    return results


def _iterations(folder: Path) -> int:
    return int(json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))["iterations"])
