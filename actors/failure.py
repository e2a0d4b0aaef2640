"""Why a run ended early: the one cause under the layers that Ray wraps around it, and a report of it."""

import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from pipeline.failure_report import DIVERGENCE, FailureNote, failure_report, note_of
from pipeline.run_folder import ERROR_FILE, write_text
from pipeline.secrets import redact

# An actor that does not tell what it knows must not keep the run from ending.
PATIENCE_S = 10.0


class RunFailedError(RuntimeError):
    """A run ended early. The message is the reason; the error it was raised from holds every detail."""

    def __init__(self, reason: str, report: str = "", stack: str = "", diverged: bool = False) -> None:
        """Take what is known.

        Args:
            report: the reason, and below it where, how often and what to do.
            stack: that of a remote failure.
            diverged: whether the run's numbers were no longer finite, as those of another attempt would be.
        """
        super().__init__(reason, report, stack, diverged)
        self.report = report or reason
        self.stack = stack
        self.diverged = diverged

    def __str__(self) -> str:
        return str(self.args[0])


class LastingFailureError(RuntimeError):
    """A rollout or the learner failed in a way that another attempt would meet again; the journal has the reason."""


def explain_failure(error: BaseException, journal: Any, fleets: Sequence[Any] = ()) -> RunFailedError:
    """A report in one short text: of what a rollout met, if one failed, else of what `error` was caused by.

    Ray Data passes on an error's text but not its object, so the tasks of the plan note theirs in the journal. What
    runs without Ray Data has no journal, and gives None.

    Args:
        fleets: tell how many workers were lost meanwhile.
    """
    noted: list[FailureNote] = []
    if isinstance(error, TrainingFailedError | LastingFailureError):
        (noted,) = _answers([journal.noted_failures.remote()]) or [[]]
    stats = [asdict(answer) for answer in _answers([fleet.stats.remote() for fleet in fleets])]
    notes = noted or [note_of(root_cause(error))]
    report = failure_report(notes, stats)
    stack = noted[0].stack if noted else ""
    diverged = not DIVERGENCE.isdisjoint(notes[0].kinds)
    return RunFailedError(redact(report.what), redact(report.text()), redact(stack), diverged)


def failure_of(error: Exception) -> RunFailedError:
    """`error` itself if it is one, else the report of it."""
    if isinstance(error, RunFailedError):
        return error
    failure = explain_failure(error, journal=None)
    failure.__cause__ = error
    return failure


def note_failure(error: RunFailedError, run_directory: Path) -> Path | str:
    """Keep the report and every detail but secrets in the run's folder; return the file, or why it was not written."""
    details = redact("".join(traceback.format_exception(error)))
    try:
        write_text(run_directory / ERROR_FILE, f"{error.report}\n\n{error.stack}{details}")
    except OSError as refusal:
        return f"not written, for {refusal}"
    return run_directory / ERROR_FILE


def root_cause(error: BaseException) -> BaseException:
    """The innermost exception that `error` carries with it as an object."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None:
        if any(inner is other for other in seen):
            # What a call of an actor raised is raised again from Ray's error, which holds it in turn.
            return inner
        seen.append(inner)
        inner = _carried_by(inner)
    return seen[-1]


def _carried_by(error: BaseException) -> BaseException | None:
    inner: BaseException | None = None
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        inner = error.worker_failures[min(error.worker_failures)]
    elif isinstance(error, ControllerError):
        inner = error.controller_failure
    elif isinstance(error, RayTaskError):
        inner = error.cause
    return inner or error.__cause__


def _answers(references: list[Any]) -> list[Any]:
    """What actors answer; nothing where one of them is gone, which the failure itself tells."""
    if not references:  # Ray would start to answer nothing
        return []
    try:
        answers: list[Any] = ray.get(references, timeout=PATIENCE_S)
    except RayError:
        return []
    return answers
