"""TensorBoard: event files in the run folder."""

from collections.abc import Mapping

from pipeline.event_file import EventFile
from pipeline.tracking.base import TrackedRun, TrackerError


class TensorBoardTracker:
    """What is recorded again replaces what was recorded before."""

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder / "tensorboard"
        self._events: EventFile | None = None
        self._first = 0

    def begin(self, iteration: int) -> None:
        """Begin a file that purges what an interrupted run left from `iteration` on."""
        self._first = iteration
        self._events = EventFile(self._folder)

    def record(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Write an iteration; it is on the disk when this returns. What an interrupted run wrote is in its own file."""
        assert self._events is not None, "begin() comes first"
        if iteration < self._first:
            return
        try:
            self._events.add(iteration, scalars)
        except OSError as error:
            raise TrackerError(f"TensorBoard's file in {self._folder} was not written: {error}") from error

    def close(self, succeeded: bool) -> None:
        """Nothing is left to write, whatever became of the run."""
        self._events = None
