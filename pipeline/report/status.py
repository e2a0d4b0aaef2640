"""Where a run stands, finished or not, from the files of its folder alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint_store import MANIFEST_FILE
from pipeline.config import RunSettings
from pipeline.object_storage import folder_to_read
from pipeline.report.evaluation_file import EVALUATION_FILE, RunEvaluation, read_evaluation
from pipeline.report.history import read_metrics, read_settings
from pipeline.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    ERROR_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
)

POSITION_FILE = "position.json"
FILES_READ = (CONFIG_FILE, METRICS_FILE, ENVIRONMENT_FILE, ERROR_FILE, EVALUATION_FILE, SUMMARY_FILE)


@dataclass(frozen=True)
class CheckpointFound:
    """The newest checkpoint of a run: the iteration that comes next, and when it was written, in seconds since 1970."""

    next_iteration: int
    written: float


@dataclass(frozen=True)
class RunStatus:
    """What the folder of one run says of it.

    Attributes:
        location: its folder's path or URI, as it was named.
        settings: its checked configuration.
        metrics: an object per finished iteration, from iteration 0 on.
        checkpoint: where it can be taken up, None where it would begin anew.
        evaluation: its held-out comparison, None before it was made.
        is_complete: whether it came to its end and wrote its summary.
        failure: the first line of what stopped it, None where it was not stopped since it was last taken up.
        last_written: when it last wrote, in seconds since 1970.
    """

    location: str
    settings: RunSettings
    metrics: tuple[dict[str, Any], ...]
    checkpoint: CheckpointFound | None
    evaluation: RunEvaluation | None
    is_complete: bool
    failure: str | None
    last_written: float

    @property
    def iterations_are_done(self) -> bool:
        """Whether nothing is left to learn: every iteration is done, or the time that was allowed is spent."""
        return self.settings.is_over(len(self.metrics), sum(metrics["seconds"] for metrics in self.metrics))


def read_status(location: str) -> RunStatus:
    """Read a run folder, on a disk or in object storage, while the run goes on, or after it ended in whatever way.

    Raises:
        ValueError: no run folder, or a malformed file in it; the message names it.
    """
    with folder_to_read(location, _is_read) as folder:
        try:
            return _read_folder(location, folder)
        except ValueError as error:
            raise ValueError(str(error).replace(str(folder), location)) from None


def _is_read(name: str) -> bool:
    """Whether a file, of a name with slashes, tells where the run stands."""
    folder, _, rest = name.partition("/")
    return name in FILES_READ or (folder == CHECKPOINTS_FOLDER and rest.endswith((MANIFEST_FILE, POSITION_FILE)))


def _read_folder(location: str, folder: Path) -> RunStatus:
    settings = read_settings(folder)
    checkpoint = _newest_checkpoint(folder / CHECKPOINTS_FOLDER)
    times = [path.stat().st_mtime for path in folder.iterdir() if path.is_file()]
    return RunStatus(
        location=location,
        settings=settings,
        metrics=read_metrics(folder, settings),
        checkpoint=checkpoint,
        evaluation=read_evaluation(folder),
        is_complete=(folder / SUMMARY_FILE).is_file(),
        failure=_failure(folder),
        last_written=max(times if checkpoint is None else [*times, checkpoint.written]),
    )


def _newest_checkpoint(folder: Path) -> CheckpointFound | None:
    found = []
    # The manifest is written last: a checkpoint without one is being written.
    for manifest in folder.glob(f"iteration_*/{MANIFEST_FILE}"):
        try:
            position = json.loads((manifest.parent / POSITION_FILE).read_text(encoding="utf-8"))
            found.append(CheckpointFound(position["next_iteration"], manifest.stat().st_mtime))
        except (FileNotFoundError, json.JSONDecodeError):
            # It was deleted since, or is damaged; a run that is taken up passes over it too.
            continue
    return max(found, key=lambda checkpoint: checkpoint.next_iteration, default=None)


def _failure(folder: Path) -> str | None:
    """The first line of error.log, unless the run was taken up after it was written."""
    error, started = folder / ERROR_FILE, folder / ENVIRONMENT_FILE
    if not error.is_file() or (started.is_file() and started.stat().st_mtime > error.stat().st_mtime):
        return None
    return error.read_text(encoding="utf-8").partition("\n")[0]
