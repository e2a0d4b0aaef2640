"""What a single run tells of its own learning, iteration by iteration."""

from dataclasses import dataclass
from math import isnan

import numpy as np

from pipeline.report.aggregate import Band, block_means
from pipeline.report.charts import Curve, line_chart
from pipeline.report.content import Chart, Section, Table
from pipeline.report.costs import trajectories_learnt
from pipeline.report.explanations import DIAGNOSTICS, STEPS
from pipeline.report.history import RunHistory, Series
from pipeline.report.looks import ordered_looks
from pipeline.report.training_section import MOST_ROWS, block_size
from pipeline.report.wording import evenly_spaced, precise

X_LABEL = "trajectories"


SHARE = (-0.03, 1.03)
"""Limits of an axis from 0 to 1 on which a line along either end stays visible."""


@dataclass(frozen=True)
class Metric:
    """A key of metrics.jsonl, what it is called on an axis, and the axis' limits where they are fixed."""

    key: str
    label: str
    limits: tuple[float, float] | None = None


METRICS = (
    Metric("loss", "loss"),
    Metric("implicit_accuracy", "implicit accuracy"),
    Metric("margin", "margin"),
    Metric("gradient_norm", "gradient norm"),
    Metric("drift", "drift"),
    Metric("tie_rate", "share of ties", SHARE),
)

STEP_METRICS = (
    Metric("step_reward", "step-wise reward"),
    Metric("step_gap", "step-wise reward gap"),
    Metric("step_tie_rate", "share of ties", SHARE),
    Metric("step_accepted", "accepted moves", SHARE),
    Metric("step_move", "length of the move"),
)


def diagnostics_section(run: RunHistory) -> Section:
    """Charts of every metric that the run kept, over trajectories, and their numbers in folded tables."""
    block = block_size([run])
    scalars = [metric for metric in METRICS if np.isfinite(run.series(metric.key)).any()]
    step_wise = {metric: steps for metric in STEP_METRICS if (steps := run.step_series(metric.key)) is not None}
    return Section(
        "Diagnostics",
        paragraphs=(DIAGNOSTICS, STEPS) if step_wise else (DIAGNOSTICS,),
        charts=(
            *(_chart(run, metric, block) for metric in scalars),
            *(_step_chart(run, metric, steps, block) for metric, steps in step_wise.items()),
        ),
        folded=(
            _table(run, scalars),
            *(_step_table(run, metric, steps) for metric, steps in step_wise.items()),
        ),
    )


def _line(run: RunHistory, values: Series, block: int) -> Band:
    means = block_means(values, block)
    return Band(block_means(trajectories_learnt(run), block), means, means, means)


def _chart(run: RunHistory, metric: Metric, block: int) -> Chart:
    band = _line(run, run.series(metric.key), block)
    words = f"{metric.label} over {X_LABEL}: {_from_to(band.mean)}."
    return Chart(metric.label, words, line_chart([Curve("", band)], X_LABEL, metric.label, metric.limits))


def _step_chart(run: RunHistory, metric: Metric, steps: Series, block: int) -> Chart:
    names = _step_names(run)
    bands = [_line(run, values, block) for values in steps.T]
    looks = ordered_looks(len(names))
    curves = [Curve(name, band, look) for name, band, look in zip(names, bands, looks, strict=True)]
    words = "; ".join(f"{curve.label} {_from_to(curve.band.mean)}" for curve in curves)
    title = f"{metric.label} by step"
    svg = line_chart(curves, X_LABEL, metric.label, metric.limits)
    return Chart(title, f"{metric.label} over {X_LABEL}: {words}.", svg)


def _from_to(values: Series) -> str:
    finite = [float(value) for value in values if not isnan(value)]
    return f"from {precise(finite[0])} to {precise(finite[-1])}" if finite else "no number"


def _step_names(run: RunHistory) -> list[str]:
    return [f"step {step}" for step in run.settings.trained_steps]


def _table(run: RunHistory, metrics: list[Metric]) -> Table:
    columns = ("iteration", *(metric.label for metric in metrics))
    values = [run.series(metric.key) for metric in metrics]
    return Table("Diagnostics at some iterations", columns, _rows(values, len(run.metrics)))


def _step_table(run: RunHistory, metric: Metric, steps: Series) -> Table:
    caption = f"{metric.label} by step, at some iterations"
    return Table(caption, ("iteration", *_step_names(run)), _rows(list(steps.T), len(run.metrics)))


def _rows(columns: list[Series], length: int) -> tuple[tuple[str, ...], ...]:
    indices = evenly_spaced(length, MOST_ROWS)
    return tuple((str(index), *(precise(float(column[index])) for column in columns)) for index in indices)
