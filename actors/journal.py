"""Journal: the one writer of a run folder's metrics, records and sample grids, beside the driver.

Whoever holds a handle of an actor imports the module of its class. Ray Data's tasks do and need neither torch nor
diffusers, which the libraries for pictures import, nor the trackers' libraries: nothing at the top imports those.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from PIL import Image
from ray.actor import ActorHandle

from actors.cluster import beside_the_driver
from actors.logs import log_in_actor
from actors.metrics import RunMetrics
from pipeline.checkpoint_store import checkpoints_of_run
from pipeline.config import RunSettings
from pipeline.failure_report import FailureNote
from pipeline.object_storage import Mirror, is_object_storage
from pipeline.patience import Patience
from pipeline.run_folder import LOG_FILE, METRICS_FILE, RECORDS_FOLDER, MetricsFile
from pipeline.tracking.base import TrackedRun
from pipeline.tracking.trackers import Trackers, open_tracker

logger = logging.getLogger(__name__)


class Journal:
    """Run it as an actor by `start_journal`. A learner on any node writes through it to the driver's folder."""

    def __init__(self, run_directory: str, settings: RunSettings) -> None:
        """Take an existing folder, that of a run with `settings`; in object storage a copy of it is kept up to date."""
        self.directory = Path(run_directory)
        self.patience = Patience(settings.checkpoint.retry_seconds)
        self.metrics = MetricsFile(self.directory / METRICS_FILE)
        self._mirror: Mirror | None = None
        if is_object_storage(settings.output_dir):
            self._mirror = Mirror(self.directory, settings.location, self.patience)
            self._mirror.recognise()
        # The rest is on the disk: of a run of weeks it would fill the memory.
        self._newest: dict[str, Any] | None = None
        self._failures: list[FailureNote] = []
        self._first = 0
        self._stop_requested = False
        self._settings = settings
        self._trackers: Trackers | None = None
        self._prometheus = RunMetrics(settings.name)
        self._log = logging.FileHandler(self.directory / LOG_FILE, encoding="utf-8", delay=True)
        log_in_actor("journal", send=self.log)

    def begin(self, iteration: int) -> None:
        """Iterations from `iteration` on are about to be made; drop what an interrupted learner left of them.

        Raises:
            ValueError: a checkpoint lies here that the learner does not see.
            StorageError: as all that writes here, once the disk has failed for longer than the journal's patience.
            TrackerError: a tracker cannot be opened.
        """
        self._refuse_beginning_before_checkpoint(iteration)
        self._drop_records_from(iteration)
        self._open(iteration)
        self._prometheus.learner_began(iteration, self._newest.get("time") if self._newest else None)
        self._push()
        logger.info("the learner begins", extra={"iteration": iteration})

    def _refuse_beginning_before_checkpoint(self, iteration: int) -> None:
        """What would be dropped could not be made up for: the learner's node has another folder of this name, or none.

        Raises:
            ValueError: what to change.
        """
        if iteration > 0:  # it has seen the folder, and may have passed over a newer one that it could not read
            return
        newest = checkpoints_of_run(self._settings, self.directory).newest()
        if newest.name is not None:
            raise ValueError(
                f"the learner would begin with iteration {iteration}, but {newest.name} is in {self.directory}: its "
                "node does not see that folder; let output_dir be one that all nodes share, or a bucket, and resume"
            )

    def _open(self, iteration: int) -> list[dict[str, Any]]:
        """Let the files and the trackers begin with `iteration`; return the metrics of those before it."""
        self._first = iteration
        history: list[dict[str, Any]] = self.patience.keep_trying(
            f"write {self.metrics.path}", lambda: self.metrics.keep_before(iteration)
        )
        self._newest = history[-1] if history else None
        if self._trackers is None:
            run = TrackedRun(self._settings.name, self.directory, self._settings.model_dump(mode="json"))
            self._trackers = Trackers(open_tracker(chosen, run) for chosen in self._settings.tracking)
        self._trackers.begin(iteration, history)
        return history

    def _drop_records_from(self, iteration: int) -> None:
        """Learners of another number would make files of other names, and those would stay beside them."""

        def is_dropped(name: str) -> bool:
            return (
                name.startswith(f"{RECORDS_FOLDER}/iteration_") and name >= f"{RECORDS_FOLDER}/{_file_stem(iteration)}"
            )

        for file in sorted((self.directory / RECORDS_FOLDER).glob("iteration_*")):
            if is_dropped(f"{RECORDS_FOLDER}/{file.name}"):
                self.patience.keep_trying(f"delete {file}", file.unlink)
        if self._mirror is not None and self._settings.records.save:
            self._mirror.remove(is_dropped, RECORDS_FOLDER)

    def record(self, metrics: dict[str, Any]) -> None:
        """Write one iteration's metrics; they are on the disk when this returns.

        A journal that Ray started in place of one whose process died goes on here; the call may be one that the dead
        one had answered but for the return, and writes the iteration once all the same.
        """
        if self._trackers is None:
            self._take_over(metrics["iteration"])
        assert self._trackers is not None, "begin() opens them"
        if self._newest is not None and self._newest["iteration"] >= metrics["iteration"]:
            return  # the answer was lost on its way, and Ray asked again
        self.patience.keep_trying(f"write {self.metrics.path}", lambda: self.metrics.append(metrics))
        self._newest = metrics
        self._trackers.record(metrics)
        self._prometheus.iteration_ended(metrics)
        self._push()
        logger.info("the iteration is done", extra={"iteration": metrics["iteration"]})

    def _take_over(self, iteration: int) -> None:
        """Go on for a journal that the learner had begun with, and whose process died."""
        written = self._time_of_newest_checkpoint(self._open(iteration))
        if written is not None:
            self._prometheus.checkpoint_written(written)
        logger.warning("the journal was lost; another one goes on", extra={"iteration": iteration})

    def _time_of_newest_checkpoint(self, history: list[dict[str, Any]]) -> float | None:
        """It is written as soon as the iteration before it is recorded."""
        store = checkpoints_of_run(self._settings, self.directory)
        names = self.patience.keep_trying(f"list {store.location}", store.names)
        times = {_file_stem(metrics["iteration"] + 1): metrics.get("time") for metrics in history}
        return times.get(names[-1]) if names else None

    def since(self, iteration: int) -> list[dict[str, Any]]:
        """Metrics of `iteration` and later, those that an interrupted run made included."""
        if self._trackers is not None and (self._newest is None or self._newest["iteration"] <= iteration):
            # As the driver asks, often: for what it does not have yet.
            return [] if self._newest is None or self._newest["iteration"] < iteration else [self._newest]
        history = self.patience.keep_trying(f"read {self.metrics.path}", self.metrics.read)
        return [metrics for metrics in history if metrics["iteration"] >= iteration]

    def made_since(self, iteration: int) -> list[dict[str, Any]]:
        """`since` without what an interrupted run made, for the driver's progress line."""
        return [] if self._trackers is None else self.since(max(iteration, self._first))

    def has_begun(self) -> bool:
        """Whether a learner has found its place."""
        return self._trackers is not None

    def note_checkpoint(self) -> None:
        """A checkpoint was written."""
        self._prometheus.checkpoint_written()

    def log(self, line: str) -> None:
        """Add a line of JSON, of whichever process, to log.jsonl."""
        self._log.handle(logging.makeLogRecord({"msg": line}))

    def note_failure(self, note: FailureNote) -> None:
        """Keep what a rollout or the learner met, for the driver's report."""
        self._failures.append(note)
        in_progress = self._first if self._newest is None else self._newest["iteration"] + 1
        logger.error("%s (%s)", note.reason, ", ".join(note.where), extra={"iteration": in_progress})

    def noted_failures(self) -> list[FailureNote]:
        """What `note_failure` was told, oldest first."""
        return self._failures

    def request_stop(self) -> None:
        """Ask the learner to stop after the iteration in progress."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Whether `request_stop` was called."""
        return self._stop_requested

    def close(self, succeeded: bool) -> None:
        """Tell the trackers how the run ended; nothing is recorded after it."""
        if self._trackers is not None:
            self._trackers.close(succeeded)
        self._prometheus.end()

    def save_records(self, iteration: int, worker: int, table: pa.Table) -> None:
        """Keep one learner worker's share of an iteration's records as Parquet."""
        from pipeline.parquet_file import write_parquet

        file = self.directory / RECORDS_FOLDER / f"{_file_stem(iteration)}_worker_{worker:03d}.parquet"
        self.patience.keep_trying(f"write {file}", lambda: write_parquet(table, file))

    def save_grid(self, iteration: int, images: NDArray[np.uint8]) -> None:
        """Write the sample grid of the policy that begins `iteration`, from (B, H, W, 3) uint8."""
        from pipeline.images import image_grid, save_png

        columns = int(np.ceil(np.sqrt(len(images))))
        grid = image_grid([Image.fromarray(image) for image in images], columns)
        file = self.directory / "samples" / f"{_file_stem(iteration)}.png"
        self.patience.keep_trying(f"write {file}", lambda: save_png(grid, file))
        self._push()

    def _push(self) -> None:
        if self._mirror is not None:
            self._mirror.push()


def _file_stem(iteration: int) -> str:
    return f"iteration_{iteration:06d}"


def start_journal(run_directory: Path, settings: RunSettings) -> ActorHandle[Any]:
    """Start a Journal on the driver's node, where the run folder is; Ray starts another one if its process dies.

    On a cluster that was joined its process works in Ray's copy of the working directory.
    """
    actor_class: Any = ray.remote(Journal)
    options = beside_the_driver() | {"max_restarts": -1, "max_task_retries": -1}
    journal: ActorHandle[Any] = actor_class.options(**options).remote(str(run_directory.resolve()), settings)
    return journal
