"""The trackers that a run asks for: whether they can be had, and all of them as one."""

import logging
import os
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.tracking.base import TrackedRun, Tracker, TrackerError, scalars_of
from pipeline.tracking.settings import AnyTracker, MlflowSettings, WandbSettings

logger = logging.getLogger(__name__)

DISTRIBUTIONS = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow-skinny"}
"""The package that each tracker needs."""

VARIABLES = {
    # A server that does not answer holds up the run; what it missed is given to it again after the next iteration.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # Who writes `file:` into a configuration means it; without this MLflow refuses, and recommends a database.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    # What a run does is told to the places that its configuration names, and to nobody else.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""What trackers read from the environment, some of it when they are imported; what is set outside is left alone."""


def check_trackers(chosen: Sequence[AnyTracker]) -> None:
    """Refuse trackers that are not installed, not logged in, or cannot use the place they are given.

    Raises:
        ValueError: what is missing, and how to get it.
    """
    _set_variables()
    for settings in chosen:
        try:
            version(DISTRIBUTIONS[settings.name])
        except PackageNotFoundError:
            raise ValueError(
                f"tracking names {settings.name}, which is not installed; pip install '.[{settings.name}]', or leave "
                "it out of tracking"
            ) from None
        if isinstance(settings, WandbSettings):
            _check_login(settings)
        elif isinstance(settings, MlflowSettings):
            _check_uri(settings)


def _set_variables() -> None:
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


def _check_login(settings: WandbSettings) -> None:
    import wandb

    if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ValueError(
            "tracking names wandb, and nobody is logged in; run `wandb login`, set WANDB_API_KEY, or use "
            "{name: wandb, mode: offline}"
        )


def _check_uri(settings: MlflowSettings) -> None:
    from mlflow.tracking import MlflowClient

    from pipeline.tracking.mlflow_tracker import failures_told

    try:
        with failures_told(f"tracking names mlflow with uri={settings.uri!r}, which cannot be used"):
            MlflowClient(tracking_uri=settings.uri)
    except TrackerError as error:
        raise ValueError(str(error)) from error


def open_tracker(settings: AnyTracker, run: TrackedRun) -> Tracker:
    """The tracker that `settings` describe; its library is imported now and not before."""
    _set_variables()
    if isinstance(settings, WandbSettings):
        from pipeline.tracking.wandb_tracker import WandbTracker

        return WandbTracker(settings, run)
    if isinstance(settings, MlflowSettings):
        from pipeline.tracking.mlflow_tracker import MlflowTracker

        return MlflowTracker(settings, run)
    from pipeline.tracking.tensorboard import TensorBoardTracker

    return TensorBoardTracker(run)


class Trackers:
    """Several trackers as one. metrics.jsonl is the truth: what a tracker misses does not stop the run.

    One that fails is warned of, and given what it has missed with the next iteration.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = tuple(trackers)
        self._missed: dict[Tracker, list[dict[str, Any]]] = {}

    def begin(self, iteration: int, history: Sequence[dict[str, Any]]) -> None:
        """Open all; those that lack iterations of `history`, an interrupted run's metrics, are given them.

        Raises:
            TrackerError: one cannot be opened; nothing is lost yet, so the run stops.
        """
        for tracker in self._trackers:
            tracker.begin(iteration)
            self._missed[tracker] = list(history)

    def record(self, metrics: dict[str, Any]) -> None:
        """Give an iteration's metrics, and what was missed before it, to all."""
        for tracker in self._trackers:
            missed = self._missed[tracker]
            missed.append(metrics)
            try:
                while missed:
                    tracker.record(missed[0]["iteration"], scalars_of(missed[0]))
                    missed.pop(0)
            except (TrackerError, OSError) as error:  # a disk may refuse the file that a tracker keeps here
                logger.warning("%s; it is given again with the next iteration", error)

    def close(self, succeeded: bool) -> None:
        """Close all."""
        for tracker in self._trackers:
            try:
                tracker.close(succeeded)
            except (TrackerError, OSError) as error:
                logger.warning("%s", error)
