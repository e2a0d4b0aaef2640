"""The report of a comparison: the page about its finished runs, under the labels of its variants."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.comparison.loading import is_finished
from pipeline.comparison.overview import plan_section
from pipeline.comparison.plan import Plan
from pipeline.comparison.sweep import SweepResult, chosen_learning_rates, read_sweep
from pipeline.report.writing import write_parquet, write_report

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
    labels = {run.folder: run.cell for run in plan.runs(chosen) if is_finished(run)}
    if not labels:
        return None
    return write_report(list(labels), plan.folder, labels, [plan_section(plan, chosen, results)])


def _sweep_table(results: Sequence[SweepResult], chosen: dict[str, float]) -> pa.Table:
    rows = [
        {
            "variant": result.cell,
            "learning_rate": result.learning_rate,
            "iterations": result.iterations,
            "base": result.comparison.base_mean,
            "aligned": result.comparison.aligned_mean,
            "difference": result.comparison.difference,
            "low": result.comparison.low,
            "high": result.comparison.high,
            "win_rate": result.comparison.win_rate,
            "pairs": result.comparison.pairs,
            "chosen": chosen.get(result.cell) == result.learning_rate,
        }
        for result in results
    ]
    return pa.Table.from_pylist(rows, schema=SWEEP)
