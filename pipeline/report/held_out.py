"""The held-out comparisons of all runs, run by run and over the seeds of each method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.report.aggregate import Estimate, estimate_of_runs, estimate_over_seeds, with_error_over_prompts
from pipeline.report.comparison import Comparison, Method
from pipeline.report.evaluation_file import RunEvaluation
from pipeline.report.history import RunHistory
from pipeline.report.pairs import share_pairs

Kind = Literal["reward", "hacking"]


@dataclass(frozen=True)
class HeldOutRow:
    """Base against aligned: of one run, or over the seeds of a method.

    Attributes:
        method: the method's label.
        run, seed: which run; None over seeds.
        kind: a reward, or a measure of hacking.
        measure: its name.
        base, aligned, difference: means over pairs, and over runs.
        low, high: the 95 % interval of `difference`. Of one run it is the evaluation's own, over prompts; over seeds it
            is of the runs' differences and of their prompts; a method of one run keeps that run's.
        win_rate: share of pairs in which the aligned image scores higher; None for a measure of hacking.
        pairs: pairs of images, all runs together; None for a measure of hacking.
        runs: how many runs this row is of.
    """

    method: str
    run: str | None
    seed: int | None
    kind: Kind
    measure: str
    base: float
    aligned: float
    difference: float
    low: float
    high: float
    win_rate: float | None
    pairs: int | None
    runs: int


def rows_of_runs(comparison: Comparison) -> list[HeldOutRow]:
    """A row per run and measure, for the runs that were evaluated."""
    return [row for method in comparison.methods for run in method.runs for row in _rows_of_run(method.label, run)]


def rows_over_seeds(comparison: Comparison) -> list[HeldOutRow]:
    """A row per method and measure, over those of its runs that were evaluated; measures in order of appearance."""
    rows = [row for method in comparison.methods for row in _rows_of_method(method)]
    order = list(dict.fromkeys((row.kind, row.measure) for row in rows))
    return sorted(rows, key=lambda row: order.index((row.kind, row.measure)))


def _rows_of_run(label: str, run: RunHistory) -> list[HeldOutRow]:
    return [] if run.evaluation is None else rows_of_evaluation(label, run.evaluation, run.name, run.seed)


def rows_of_evaluation(label: str, evaluation: RunEvaluation, run: str | None, seed: int | None) -> list[HeldOutRow]:
    """A row per reward and measure of one evaluation, of a run or of an adapter that has none."""
    rewards = [
        HeldOutRow(
            method=label,
            run=run,
            seed=seed,
            kind="reward",
            measure=name,
            base=row.base_mean,
            aligned=row.aligned_mean,
            difference=row.difference,
            low=row.low,
            high=row.high,
            win_rate=row.win_rate,
            pairs=row.pairs,
            runs=1,
        )
        for name, row in evaluation.rewards.items()
    ]
    hacking = [
        HeldOutRow(
            method=label,
            run=run,
            seed=seed,
            kind="hacking",
            measure=name,
            base=row.base,
            aligned=row.aligned,
            difference=row.aligned - row.base,
            low=row.low,
            high=row.high,
            win_rate=None,
            pairs=None,
            runs=1,
        )
        for name, row in evaluation.hacking.items()
    ]
    return rewards + hacking


def _rows_of_method(method: Method) -> list[HeldOutRow]:
    by_measure: dict[tuple[Kind, str], dict[int, HeldOutRow]] = {}
    evaluated = [run for run in method.runs if run.evaluation is not None]
    for number, run in enumerate(evaluated):
        for row in _rows_of_run(method.label, run):
            by_measure.setdefault((row.kind, row.measure), {})[number] = row
    return [_over_seeds([evaluated[number] for number in rows], list(rows.values())) for rows in by_measure.values()]


def _over_seeds(runs: Sequence[RunHistory], rows: Sequence[HeldOutRow]) -> HeldOutRow:
    """One row over those of several runs."""
    first = rows[0]
    low, high = (first.low, first.high) if len(rows) == 1 else _interval(runs, rows)
    win_rates = [row.win_rate for row in rows if row.win_rate is not None]
    pairs = [row.pairs for row in rows if row.pairs is not None]
    return HeldOutRow(
        method=first.method,
        run=None,
        seed=None,
        kind=first.kind,
        measure=first.measure,
        base=_mean([row.base for row in rows]),
        aligned=_mean([row.aligned for row in rows]),
        difference=_mean([row.difference for row in rows]),
        low=low,
        high=high,
        win_rate=_mean(win_rates) if win_rates else None,
        pairs=sum(pairs) if pairs else None,
        runs=len(rows),
    )


def _interval(runs: Sequence[RunHistory], rows: Sequence[HeldOutRow]) -> tuple[float, float]:
    """The interval over seeds and prompts.

    Where the pairs were not kept, or those of a measure are none, the runs' own intervals stand for that over prompts,
    as if all runs erred alike.
    """
    measure = rows[0].measure
    tables = [run.pairs for run in runs]
    if share_pairs(tables, measure):
        scores = [table.loc[measure] for table in tables if table is not None]
        estimate = estimate_of_runs([table.aligned - table.base for table in scores])
    else:
        over_prompts = Estimate(
            _mean([row.difference for row in rows]), _mean([row.low for row in rows]), _mean([row.high for row in rows])
        )
        estimate = with_error_over_prompts(estimate_over_seeds([row.difference for row in rows]), over_prompts)
    return estimate.low, estimate.high


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
