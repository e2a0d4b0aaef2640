"""How a comparison ended: what failed, what is missing, and what to do about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.comparison.loading import DIVERGED_FILE
from pipeline.comparison.overview import missing_runs
from pipeline.comparison.plan import Plan
from pipeline.comparison.sweep import chosen_learning_rates, read_sweep


@dataclass(frozen=True)
class Outcome:
    """What its runs and their evaluation came to.

    Attributes:
        failed: the folders of the runs that failed, each with the reason.
        evaluation: why the evaluation of all adapters failed; None where it did not.
    """

    failed: Mapping[Path, str]
    evaluation: str | None = None


def closing_error(plan: Plan, outcome: Outcome, report: Path | None) -> str | None:
    """What the job ends with where something failed, or where there is nothing to report; None where all is well.

    Args:
        report: the page about what there is; None where no run is finished.
    """
    faults = []
    if outcome.failed:
        reasons = [f"{folder}: {reason}" for folder, reason in outcome.failed.items()]
        faults.append(_points(f"{len(reasons)} runs failed, and what depends on them is missing:", reasons))
    if outcome.evaluation is not None:
        faults.append(f"the evaluation failed: {outcome.evaluation}")
    if report is None:
        missing = missing_runs(plan, chosen_learning_rates(plan, read_sweep(plan)))
        faults.append(_points("no run has come to its end, and there is nothing to report:", missing))
    if not faults:
        return None
    return "\n".join([f"error: {faults[0]}", *faults[1:], *_what_to_do(plan, outcome, report)])


def _what_to_do(plan: Plan, outcome: Outcome, report: Path | None) -> list[str]:
    if report is not None:
        kept = [f"The report of what there is lies in {report}"]
    else:
        kept = [f"A run that diverged is tried again when {DIVERGED_FILE} is removed from its folder"]
    if outcome.failed or outcome.evaluation is not None:
        kept.append(f"All that was done is kept; when the cause is gone, continue with --resume {plan.folder}")
    return kept


def _points(title: str, lines: Sequence[str]) -> str:
    return "\n  ".join([title, *lines])
