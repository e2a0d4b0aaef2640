"""TensorBoard, through tensorboardX: event files in the run folder."""

from collections.abc import Mapping

from tensorboardX import SummaryWriter

from pipeline.tracking.base import TrackedRun


class TensorBoardTracker:
    """What is recorded again replaces what was recorded before."""

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._first = 0

    def begin(self, iteration: int) -> None:
        """Purge what an interrupted run left from `iteration` on; what it left before is in its own file."""
        self._first = iteration
        self.close(succeeded=False)
        # tensorboardX names files by the second, and would write over one that is younger.
        suffix = f".from_{iteration:06d}"
        self._writer = SummaryWriter(str(self._folder), purge_step=iteration, filename_suffix=suffix)

    def record(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Write an iteration; it is on the disk when this returns."""
        assert self._writer is not None, "begin() comes first"
        if iteration < self._first:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def close(self, succeeded: bool) -> None:
        """Close the file, whatever became of the run."""
        if self._writer is not None:
            self._writer.close()
