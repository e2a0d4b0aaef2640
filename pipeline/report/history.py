"""A run folder read back: what the report knows of one run, finished or not."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.report.evaluation_file import RunEvaluation, read_evaluation
from pipeline.report.pairs import check_pairs, read_pairs
from pipeline.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, MetricsFile

Series = NDArray[np.float64]

NUMBERS_OF_EVERY_ITERATION = ("reward", "seconds")

# Methods that draw no images have none of these.
NUMBERS_OF_IMAGES = ("reward",)


@dataclass(frozen=True)
class RunHistory:
    """One run.

    Attributes:
        folder: where it lies, as it was named.
        settings: its checked configuration.
        config: the text of its config.yaml.
        metrics: an object per finished iteration, from iteration 0 on; at least one.
        evaluation: its held-out comparison, None before it was made.
        environment: versions and hardware, None where the folder does not tell them.
        pairs: the numbers behind the comparison, as `read_pairs` returns them; None where they were not kept.
    """

    folder: Path
    settings: RunSettings
    config: str
    metrics: tuple[dict[str, Any], ...]
    evaluation: RunEvaluation | None
    environment: dict[str, Any] | None
    pairs: pd.DataFrame | None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.settings.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.settings.seed

    @property
    def is_finished(self) -> bool:
        """Whether all its iterations are done: those that were asked for, or those that its time allowed."""
        return self.settings.is_over(len(self.metrics), float(self.series("seconds").sum()))

    def series(self, metric: str) -> Series:
        """A number by iteration, (N,) float64; NaN where an iteration has none."""
        values = [metrics.get(metric) for metrics in self.metrics]
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)

    def step_series(self, metric: str) -> Series | None:
        """Numbers by iteration and trained step, noisy to clean, (N, K) float64; None where they are not kept."""
        rows = [metrics.get(metric) for metrics in self.metrics]
        return None if None in rows else np.array(rows, dtype=np.float64)


def read_run(folder: Path) -> RunHistory:
    """Read a run folder; nothing but the folder is looked at.

    Raises:
        ValueError: no run folder, a run without a finished iteration, or a malformed file; the message names it.
    """
    settings = read_settings(folder)
    metrics = read_metrics(folder, settings)
    if not metrics:
        raise ValueError(f"{folder} has no finished iteration yet: there is nothing to report")
    evaluation, pairs = read_evaluation(folder), read_pairs(folder)
    if evaluation is not None and pairs is not None:
        check_pairs(folder, pairs, evaluation)
    return RunHistory(
        folder=folder,
        settings=settings,
        config=(folder / CONFIG_FILE).read_text(encoding="utf-8"),
        metrics=metrics,
        evaluation=evaluation,
        environment=_read_environment(folder / ENVIRONMENT_FILE),
        pairs=pairs,
    )


def has_finished_iteration(folder: Path) -> bool:
    """Whether there is something to report of a run folder.

    Raises:
        ValueError: no run folder, or a malformed file; the message names it.
    """
    return bool(read_metrics(folder, read_settings(folder)))


def read_settings(folder: Path) -> RunSettings:
    """The settings of a run folder.

    Raises:
        ValueError: no run folder, or a configuration that does not hold.
    """
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise ValueError(f"{folder} is no run folder: it has no {config.name}")
    try:
        return load_settings(config)
    except ValueError as error:
        raise ValueError(f"{config} does not hold: {error}") from None


def read_metrics(folder: Path, settings: RunSettings) -> tuple[dict[str, Any], ...]:
    """An object per finished iteration of a run folder, from iteration 0 on; none before the first.

    Raises:
        ValueError: a malformed line; the message names it.
    """
    path = folder / METRICS_FILE
    try:
        rows = MetricsFile(path).read()
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is no JSON: {error}") from None
    for index, row in enumerate(rows):
        fault = _fault_of(row, index, settings)
        if fault:
            raise ValueError(f"{path}, line {index + 1}: {fault}")
    return tuple(rows)


def _fault_of(row: Any, index: int, settings: RunSettings) -> str:
    """What is wrong with the metrics of an iteration; empty where nothing is."""
    trained_steps = len(settings.trained_grid_steps)
    if not isinstance(row, dict):
        return f"{row!r} is no object"
    if row.get("iteration") != index:
        return f"iteration {row.get('iteration')!r} where {index} comes next"
    for name in NUMBERS_OF_EVERY_ITERATION:
        left_out = name in NUMBERS_OF_IMAGES and not settings.method.draws_images and row.get(name) is None
        if not left_out and not isinstance(row.get(name), int | float):
            return f"{name}={row.get(name)!r} is no number"
    for name, value in row.items():
        if isinstance(value, list) and len(value) != trained_steps:
            return f"{name} has {len(value)} values for {trained_steps} trained steps"
    return ""


def _read_environment(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(environment, dict):
        raise ValueError(f"{path} holds no object")
    return environment
