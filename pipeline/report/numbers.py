"""A report's numbers as tables that pandas opens: every curve, every held-out comparison, method against method."""

from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.report.aggregate import Band
from pipeline.report.comparison import Comparison, Method
from pipeline.report.costs import COSTS
from pipeline.report.held_out import rows_of_runs, rows_over_seeds
from pipeline.report.history import RunHistory
from pipeline.report.method_differences import method_differences
from pipeline.report.training_section import metric_band

CURVES = pa.schema(
    [
        ("method", pa.string()),
        ("run", pa.string()),
        ("seed", pa.int64()),
        ("iteration", pa.int64()),
        *((cost.name, pa.float64()) for cost in COSTS),
        ("metric", pa.string()),
        ("step", pa.int64()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("runs", pa.int64()),
    ]
)
"""A number of an iteration: of a run, or the mean over the seeds of a method, whose rows have no run and no seed.

The costs are what was spent on the policy that drew the iteration's images. `step` is the trained step of a number that
is kept by step, counted as steps that remain. `low` and `high` are the range over seeds; of one run they are the value.
"""

HELD_OUT = pa.schema(
    [
        ("method", pa.string()),
        ("run", pa.string()),
        ("seed", pa.int64()),
        ("kind", pa.string()),
        ("measure", pa.string()),
        ("base", pa.float64()),
        ("aligned", pa.float64()),
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("win_rate", pa.float64()),
        ("pairs", pa.int64()),
        ("runs", pa.int64()),
    ]
)
"""The fields of `held_out.HeldOutRow`: run by run, then over the seeds of each method."""

DIFFERENCES = pa.schema(
    [
        ("measure", pa.string()),
        ("trained", pa.bool_()),
        ("first", pa.string()),
        ("second", pa.string()),
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("win_rate", pa.float64()),
        ("pairs", pa.int64()),
        ("runs", pa.int64()),
    ]
)
"""The fields of `method_differences.MethodDifference`."""


def curves_table(comparison: Comparison) -> pa.Table:
    """Every number of metrics.jsonl by iteration, and the mean reward over seeds with its range."""
    rows = [row for method in comparison.methods for run in method.runs for row in _rows_of_run(method.label, run)]
    rows += [row for method in comparison.methods for row in _rows_over_seeds(method)]
    return pa.Table.from_pylist(rows, schema=CURVES)


def held_out_table(comparison: Comparison) -> pa.Table:
    """Every held-out comparison and every measure of hacking."""
    rows = [*rows_of_runs(comparison), *rows_over_seeds(comparison)]
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=HELD_OUT)


def differences_table(comparison: Comparison) -> pa.Table:
    """Every reward of one method's images above another's."""
    return pa.Table.from_pylist([asdict(row) for row in method_differences(comparison)], schema=DIFFERENCES)


def _rows_of_run(label: str, run: RunHistory) -> list[dict[str, Any]]:
    costs = {cost.name: cost.before(run) for cost in COSTS}
    rows = []
    for iteration, metrics in enumerate(run.metrics):
        key = {"method": label, "run": run.name, "seed": run.seed, "iteration": iteration, "runs": 1}
        key |= {name: values[iteration] for name, values in costs.items()}
        for name, value in metrics.items():
            # Of a dict it has one, what is told of every minibatch; that is no number of the iteration.
            if name == "iteration" or isinstance(value, str | dict):
                continue
            by_step = isinstance(value, list)
            values = zip(run.settings.trained_steps, value, strict=True) if by_step else [(None, value)]
            rows += [
                key | {"metric": name, "step": step} | dict.fromkeys(("value", "low", "high"), number)
                for step, number in values
            ]
    return rows


def _rows_over_seeds(method: Method) -> list[dict[str, Any]]:
    if len(method.runs) == 1:
        return []
    bands: dict[str, Band] = {cost.name: metric_band(method, "reward", cost) for cost in COSTS}
    first = bands[COSTS[0].name]
    return [
        {
            "method": method.label,
            "iteration": iteration,
            **{name: band.x[iteration] for name, band in bands.items()},
            "metric": "reward",
            "value": first.mean[iteration],
            "low": first.low[iteration],
            "high": first.high[iteration],
            "runs": len(method.runs),
        }
        for iteration in range(len(first.x))
    ]
