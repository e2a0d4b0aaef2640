"""Journal: the one writer of a run folder's metrics, records and sample grids, beside the driver.

Whoever holds a handle of an actor imports the module of its class. Ray Data's tasks do and need neither torch nor
diffusers, which the libraries for pictures and events import, so nothing at the top of this module imports those.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from PIL import Image
from ray.actor import ActorHandle

from actors.cluster import beside_the_driver
from pipeline.object_storage import Mirror
from pipeline.patience import NO_PATIENCE, Patience
from pipeline.run_folder import MetricsFile

if TYPE_CHECKING:
    from pipeline.event_file import EventFile


class Journal:
    """Run it as an actor by `start_journal`. A learner on any node writes through it to the driver's folder."""

    def __init__(self, run_directory: str, patience: Patience = NO_PATIENCE, stored_at: str | None = None) -> None:
        """Take an existing folder.

        Args:
            patience: with storage that fails.
            stored_at: where in object storage the folder is kept, if it is.
        """
        self.directory = Path(run_directory)
        self.patience = patience
        self._mirror = None if stored_at is None else Mirror(self.directory, stored_at, patience)
        self.metrics = MetricsFile(self.directory / "metrics.jsonl")
        self._history: list[dict[str, Any]] = []
        self._failures: list[str] = []
        self._first = 0
        self._stop_requested = False
        self._tensorboard: EventFile | None = None

    def begin(self, iteration: int) -> None:
        """Iterations from `iteration` on are about to be written; drop what an interrupted run left of them.

        Raises:
            StorageError: as all that writes here, once the disk has failed for longer than the journal's patience.
        """
        from pipeline.event_file import EventFile

        self._first = iteration
        self._history = self.patience.keep_trying(
            f"write {self.metrics.path}", lambda: self.metrics.keep_before(iteration)
        )
        self._tensorboard = EventFile(self.directory / "tensorboard")
        self._push()

    def record(self, metrics: dict[str, Any]) -> None:
        """Write one iteration's metrics; they are on the disk when this returns."""
        tensorboard = self._tensorboard
        assert tensorboard is not None, "begin() comes first"
        self.patience.keep_trying(f"write {self.metrics.path}", lambda: self.metrics.append(metrics))
        self._history.append(metrics)
        self.patience.keep_trying(
            f"write into {self.directory / 'tensorboard'}",
            lambda: tensorboard.add(metrics["iteration"], _scalars(metrics)),
        )
        self._push()

    def since(self, iteration: int) -> list[dict[str, Any]]:
        """Metrics of `iteration` and later, those that an interrupted run made included."""
        return [metrics for metrics in self._history if metrics["iteration"] >= iteration]

    def made_since(self, iteration: int) -> list[dict[str, Any]]:
        """`since` without what an interrupted run made, for the driver's progress line."""
        return self.since(max(iteration, self._first))

    def note_failure(self, reason: str) -> None:
        """Keep the reason why a rollout failed, for the driver's report."""
        self._failures.append(reason)

    def noted_failures(self) -> list[str]:
        """What `note_failure` was told, oldest first."""
        return self._failures

    def request_stop(self) -> None:
        """Ask the learner to stop after the iteration in progress."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Whether `request_stop` was called."""
        return self._stop_requested

    def save_records(self, iteration: int, worker: int, table: pa.Table) -> None:
        """Keep one learner worker's share of an iteration's records as Parquet."""
        from pipeline.records import save_records

        file = self.directory / "records" / f"iteration_{iteration:06d}_worker_{worker:03d}.parquet"
        self.patience.keep_trying(f"write {file}", lambda: save_records(table, file))

    def save_grid(self, iteration: int, images: NDArray[np.uint8]) -> None:
        """Write the sample grid of the policy that begins `iteration`, from (B, H, W, 3) uint8."""
        from pipeline.images import image_grid, save_png

        columns = int(np.ceil(np.sqrt(len(images))))
        grid = image_grid([Image.fromarray(image) for image in images], columns)
        file = self.directory / "samples" / f"iteration_{iteration:06d}.png"
        self.patience.keep_trying(f"write {file}", lambda: save_png(grid, file))
        self._push()

    def _push(self) -> None:
        if self._mirror is not None:
            self._mirror.push()


def start_journal(
    run_directory: Path, patience: Patience = NO_PATIENCE, stored_at: str | None = None
) -> ActorHandle[Any]:
    """Start a Journal on the driver's node, where the run folder is; the arguments are those of `Journal`."""
    actor_class: Any = ray.remote(Journal)
    journal: ActorHandle[Any] = actor_class.options(**beside_the_driver()).remote(
        str(run_directory), patience, stored_at
    )
    return journal


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """Flatten lists (values by trained step) and leave out what is no number."""
    scalars: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, list):
            scalars |= {f"{name}/{index}": float(item) for index, item in enumerate(value)}
        elif isinstance(value, int | float):
            scalars[name] = float(value)
    return scalars
