"""Weights & Biases. Its account is that of the driver's node: `wandb login` there, or WANDB_API_KEY."""

import uuid
from collections.abc import Mapping

import wandb

from pipeline.tracking.base import TrackedRun, TrackerError
from pipeline.tracking.bookmark import Bookmark, read_bookmark, write_bookmark
from pipeline.tracking.settings import WandbSettings


class WandbTracker:
    """One run of Weights & Biases, however often ours is taken up. Off line each time leaves files of its own.

    W&B's own process keeps what it is given in memory for a while, and loses it when it is killed. So the iterations
    that W&B has are those that its server tells of, or that were given to it before it was closed in good order.
    """

    def __init__(self, settings: WandbSettings, run: TrackedRun) -> None:
        self._settings = settings
        self._run = run
        self._path = run.folder / "wandb.json"
        self._bookmark = read_bookmark(self._path) or Bookmark(run_id=uuid.uuid4().hex[:8])
        self._next_iteration = self._bookmark.next_iteration
        self._service: wandb.Run | None = None

    def begin(self, iteration: int) -> None:
        """Open the run; the iterations that it has stay as they are."""
        if self._service is not None:
            return
        write_bookmark(self._path, self._bookmark)
        try:
            self._service = wandb.init(
                project=self._settings.project,
                entity=self._settings.entity,
                mode=self._settings.mode,
                id=self._bookmark.run_id,
                resume="allow",
                name=self._run.name,
                dir=self._run.folder,
                config=self._run.config,
                allow_val_change=True,
                # environment.json tells the commit; what the journal prints is nobody's concern.
                settings=wandb.Settings(console="off", silent=True, disable_git=True),
            )
        except wandb.Error as error:
            raise TrackerError(f"Weights & Biases cannot be reached: {error}") from error
        self._next_iteration = max(self._next_iteration, self._service.step)

    def record(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Log an iteration as the step of its number."""
        assert self._service is not None, "begin() comes first"
        if iteration < self._next_iteration:
            return
        try:
            self._service.log(dict(scalars), step=iteration)
        except wandb.Error as error:
            raise TrackerError(f"Weights & Biases did not take iteration {iteration}: {error}") from error
        self._next_iteration = iteration + 1

    def close(self, succeeded: bool) -> None:
        """Finish the run, or mark it as failed, and wait until all of it is sent or on the disk."""
        if self._service is None:
            return
        try:
            self._service.finish(exit_code=0 if succeeded else 1)
            # `finish` returns while W&B's process still writes; the journal's end would kill it.
            wandb.teardown()
        except wandb.Error as error:
            raise TrackerError(f"Weights & Biases did not finish the run: {error}") from error
        write_bookmark(self._path, self._bookmark.model_copy(update={"next_iteration": self._next_iteration}))
