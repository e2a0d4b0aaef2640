"""Which learning rate a sweep chose, and the prompts that it was chosen on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.comparison.loading import divergence, is_finished
from pipeline.comparison.plan import SWEEP_FOLDER, SWEEP_PROMPTS, Cell, Plan
from pipeline.prompt_sets import PromptSets, clean_prompts
from pipeline.prompts import load_train_prompts
from pipeline.report.evaluation_file import RewardComparison, read_evaluation
from pipeline.run_folder import METRICS_FILE, SUMMARY_FILE, MetricsFile, write_text


@dataclass(frozen=True)
class SweepResult:
    """A short run of the sweep: base against aligned, by the reward that it trained on; None where it diverged."""

    cell: str
    learning_rate: float
    iterations: int
    comparison: RewardComparison | None


def sweep_prompts(plan: Plan, prompts: PromptSets) -> list[str]:
    """What a sweep is judged by, in an order of its seed; none of it is in the final evaluation, whatever its case.

    Args:
        prompts: those that the runs of the comparison train on, and those of the final evaluation.

    Raises:
        ValueError: no prompt is left.
    """
    sweep = plan.comparison.sweep
    assert sweep is not None, "asked for without a sweep"
    source = (
        "the prompts that the runs train on"
        if sweep.prompts is None
        else f"the prompts of sweep.prompts={sweep.prompts}"
    )
    candidates = prompts.train if sweep.prompts is None else load_train_prompts(sweep.prompts)
    held_out = {prompt.casefold() for prompt in clean_prompts(prompts.held_out, "prompts.held_out")}
    left = [prompt for prompt in clean_prompts(candidates, source) if prompt.casefold() not in held_out]
    if not left:
        raise ValueError(
            f"{source} are all among those of the final evaluation, which must not choose learning rates; "
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
    """What the runs of the sweep that are over found, cell by cell and from the lowest learning rate."""
    return [result for cell in plan.cells for result in _results_of(cell)]


def chosen_learning_rates(plan: Plan, results: Sequence[SweepResult]) -> dict[str, float]:
    """The learning rate of every cell whose sweep is complete, by its label.

    The lower end of the 95 % interval of the reward's rise decides, on prompts and noise that all of them share. The
    mean would favour high rates, which change pictures more and so rise and fall further by chance; this favours low
    ones where no rise is sure. Of equals the smaller wins, and a rate with which a run diverged loses to every other.
    """
    chosen = {}
    for cell in plan.cells:
        own = [result for result in results if result.cell == cell.label]
        if not cell.sweep:
            chosen[cell.label] = cell.settings.learning_rate
        elif len(own) == len(cell.sweep):
            rises = [(one.comparison.low, -one.learning_rate) for one in own if one.comparison is not None]
            if rises:
                chosen[cell.label] = -max(rises)[1]
    return chosen


def _results_of(cell: Cell) -> list[SweepResult]:
    results = []
    for rate, run in cell.sweep.items():
        if divergence(run) is not None:
            iterations = len(MetricsFile(run.folder / METRICS_FILE).read())
            results.append(SweepResult(cell.label, rate, iterations, None))
        elif is_finished(run):
            evaluation = read_evaluation(run.folder)
            assert evaluation is not None, "the runs of a sweep are evaluated"
            iterations = int(json.loads((run.folder / SUMMARY_FILE).read_text(encoding="utf-8"))["iterations"])
            # What is trained on, be it one reward or a sum, comes first.
            results.append(SweepResult(cell.label, rate, iterations, next(iter(evaluation.rewards.values()))))
    return results
