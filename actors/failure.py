"""Why a run ended early, for a person to read: the one cause under the layers that Ray wraps around it."""

import traceback
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from pipeline.run_folder import write_text

LONGEST_REASON_LINES = 20
ERROR_FILE = "error.log"


class RunFailedError(RuntimeError):
    """A run ended early. The message is the reason; the error it was raised from holds every detail."""


class LastingFailureError(RuntimeError):
    """A rollout or the learner failed in a way that another attempt would meet again; the journal has the reason."""


def explain_failure(error: BaseException, journal: Any) -> RunFailedError:
    """The reason in one short text: what a rollout met, if one failed, else what `error` was caused by.

    Ray Data passes on an error's text but not its object, so the tasks of the plan note theirs in the journal. What
    runs without Ray Data has no journal, and gives None.
    """
    from_training = isinstance(error, TrainingFailedError | LastingFailureError)
    noted: list[str] = ray.get(journal.noted_failures.remote()) if from_training else []
    cause = root_cause(error)
    return RunFailedError(_shorten(noted[0] if noted else f"{type(cause).__name__}: {cause}"))


def note_failure(error: Exception, run_directory: Path) -> Path | str:
    """Keep every detail of a failure in the run's folder; return the file, or why it could not be written."""
    try:
        write_text(run_directory / ERROR_FILE, "".join(traceback.format_exception(error)))
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


def _shorten(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > LONGEST_REASON_LINES:
        half = LONGEST_REASON_LINES // 2
        lines = [*lines[:half], "...", *lines[-half:]]
    return "\n".join(lines)
