"""The report of a comparison: the page about its finished runs, under the labels of its variants."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.comparison.loading import divergence, is_finished
from pipeline.comparison.overview import plan_section
from pipeline.comparison.plan import Plan
from pipeline.comparison.sweep import SweepResult, chosen_learning_rates, read_sweep
from pipeline.parquet_file import write_parquet
from pipeline.report.evaluation_file import RewardComparison
from pipeline.report.writing import write_report

SWEEP = pa.schema(
    [
        ("variant", pa.string()),
        ("learning_rate", pa.float64()),
        ("iterations", pa.int64()),
        ("base", pa.float64()),
        ("aligned", pa.float64()),
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("win_rate", pa.float64()),
        ("pairs", pa.int64()),
        ("chosen", pa.bool_()),
    ]
)


def write_comparison_report(plan: Plan) -> Path | None:
    """Write the report's files, and report_sweep.parquet after a sweep, into the comparison's folder.

    Returns:
        The page; None where no run is finished.

    Raises:
        ValueError: a run folder that cannot be read; see `write_report`.
    """
    results = read_sweep(plan)
    chosen = chosen_learning_rates(plan, results)
    if results:
        write_parquet(_sweep_table(results, chosen), plan.folder / "report_sweep.parquet")
    labels = {run.folder: run.cell for run in plan.runs(chosen) if is_finished(run) and divergence(run) is None}
    if not labels:
        return None
    return write_report(list(labels), plan.folder, labels, [plan_section(plan, chosen, results)])


def _sweep_table(results: Sequence[SweepResult], chosen: dict[str, float]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for result in results:
        chosen_one = chosen.get(result.cell) == result.learning_rate
        row = {"variant": result.cell, "learning_rate": result.learning_rate, "iterations": result.iterations}
        rows.append(row | _numbers(result.comparison) | {"chosen": chosen_one})
    return pa.Table.from_pylist(rows, schema=SWEEP)


def _numbers(comparison: RewardComparison | None) -> dict[str, float]:
    """None of a run that diverged."""
    if comparison is None:
        return {}
    return {
        "base": comparison.base_mean,
        "aligned": comparison.aligned_mean,
        "difference": comparison.difference,
        "low": comparison.low,
        "high": comparison.high,
        "win_rate": comparison.win_rate,
        "pairs": comparison.pairs,
    }
