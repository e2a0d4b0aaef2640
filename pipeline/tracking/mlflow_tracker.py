"""MLflow, through its client alone: no global state, one request per iteration."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from pipeline.tracking.base import TrackedRun, TrackerError
from pipeline.tracking.bookmark import Bookmark, read_bookmark, write_bookmark
from pipeline.tracking.settings import MlflowSettings

# MLflow takes no more parameters at once, and no longer value, than this.
MOST_PARAMETERS, LONGEST_PARAMETER = 100, 6000


class MlflowTracker:
    """One run of MLflow, however often ours is taken up."""

    def __init__(self, settings: MlflowSettings, run: TrackedRun) -> None:
        self._settings = settings
        self._run = run
        self._path = run.folder / "mlflow.json"
        self._bookmark = read_bookmark(self._path)
        self._client: MlflowClient | None = None

    def begin(self, iteration: int) -> None:
        """Open the run; the iterations that it has stay as they are."""
        if self._client is not None:
            return
        with failures_told(f"MLflow at {self._settings.uri} cannot be used"):
            client = MlflowClient(tracking_uri=self._settings.uri)
            if self._bookmark is None:
                self._bookmark = Bookmark(run_id=self._create_run(client))
                write_bookmark(self._path, self._bookmark)
            else:
                client.update_run(self._bookmark.run_id, status="RUNNING")
        self._client = client

    def record(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Log an iteration as the step of its number."""
        assert self._client is not None and self._bookmark is not None, "begin() comes first"
        if iteration < self._bookmark.next_iteration:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(_permitted(name), value, now, iteration) for name, value in scalars.items()]
        with failures_told(f"MLflow at {self._settings.uri} did not take iteration {iteration}"):
            self._client.log_batch(self._bookmark.run_id, metrics=metrics)
        self._bookmark = self._bookmark.model_copy(update={"next_iteration": iteration + 1})
        write_bookmark(self._path, self._bookmark)

    def close(self, succeeded: bool) -> None:
        """Say how the run ended."""
        if self._client is None or self._bookmark is None:
            return
        with failures_told(f"MLflow at {self._settings.uri} was not told the end"):
            self._client.set_terminated(self._bookmark.run_id, "FINISHED" if succeeded else "FAILED")

    def _create_run(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self._settings.experiment)
        number = experiment.experiment_id if experiment else client.create_experiment(self._settings.experiment)
        run_id: str = client.create_run(number, run_name=self._run.name).info.run_id
        parameters = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in _flattened(self._run.config)]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            client.log_batch(run_id, params=parameters[start : start + MOST_PARAMETERS])
        return run_id


@contextmanager
def failures_told(what: str) -> Iterator[None]:
    """Whatever MLflow raises, as a TrackerError: its stores raise all kinds of exceptions, plain ones among them."""
    try:
        yield
    except Exception as error:
        raise TrackerError(f"{what}: {error}") from error


def _flattened(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Sections as dotted keys, places in a list counted from 0."""
    if isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            yield from _flattened(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, values


def _permitted(name: str) -> str:
    """`name` without what MLflow refuses, such as the + of a sum, and the / that makes a folder of `reward` there."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in name.replace("/", "."))
