"""Is the aligned model better, by how much, and at what price? The tables that a reader sees first."""

from collections import Counter
from collections.abc import Sequence

from pipeline.report.charts import Bar, interval_chart
from pipeline.report.comparison import Comparison, Method
from pipeline.report.content import Chart, Section, Table
from pipeline.report.explanations import (
    BETWEEN_METHODS,
    HACKING,
    HELD_OUT,
    INTERVAL_OVER_PAIRS,
    INTERVAL_OVER_SEEDS,
    NOT_EVALUATED,
    NOT_HELD_OUT,
    learning_from_pairs,
)
from pipeline.report.held_out import HeldOutRow, rows_of_runs, rows_over_seeds
from pipeline.report.looks import Look, looks_of
from pipeline.report.method_differences import MethodDifference, method_differences
from pipeline.report.wording import MISSING, count, interval, number, signed

REWARD_COLUMNS = ("base", "aligned", "difference", "95 % interval", "win rate", "pairs")
HACKING_COLUMNS = ("base", "aligned", "difference", "95 % interval")


def held_out_section(comparison: Comparison) -> Section:
    """Rewards of base and aligned model on the same held-out prompts and noise, method by method."""
    rows = [row for row in rows_over_seeds(comparison) if row.kind == "reward"]
    if not rows:
        return Section("Held-out evaluation", paragraphs=(NOT_EVALUATED,))
    return Section(
        "Held-out evaluation",
        paragraphs=(" ".join([HELD_OUT, *_meaning_of_prompts(comparison), *_meaning_of_intervals(rows)]),),
        tables=(_table("Rewards", comparison, rows, REWARD_COLUMNS),),
        charts=difference_charts(rows, looks_of(comparison)) if len(comparison.methods) > 1 else (),
        folded=_table_of_runs(comparison, "reward", REWARD_COLUMNS),
    )


def between_methods_section(comparison: Comparison) -> Section | None:
    """Which methods differ from one another; None where no two were evaluated on the same pairs."""
    rows = method_differences(comparison)
    if not rows:
        return None
    trained, other = [row for row in rows if row.trained], [row for row in rows if not row.trained]
    return Section(
        "Method against method",
        paragraphs=(" ".join([BETWEEN_METHODS, *learning_from_pairs(comparison.labels_without_reward)]),),
        tables=(_table_of_differences("The reward that both trained on", trained),) if trained else (),
        folded=(_table_of_differences("Rewards that not both trained on", other),) if other else (),
    )


def _table_of_differences(caption: str, rows: Sequence[MethodDifference]) -> Table:
    columns = ("measure", "method", "other method", "runs", "difference", "95 % interval", "win rate", "pairs")
    cells = tuple(
        (
            row.measure,
            row.first,
            row.second,
            count(row.runs),
            signed(row.difference),
            interval(row.low, row.high),
            number(row.win_rate, decimals=3),
            count(row.pairs),
        )
        for row in rows
    )
    return Table(caption, columns, cells)


def hacking_section(comparison: Comparison) -> Section | None:
    """What the reward's gain has cost elsewhere; None where no run measured it."""
    rows = [row for row in rows_over_seeds(comparison) if row.kind == "hacking"]
    verdicts = _verdicts(comparison)
    if not rows and not verdicts:
        return None
    return Section(
        "Reward hacking",
        paragraphs=(HACKING,),
        points=tuple(point for method in comparison.methods for point in _points(method)),
        tables=(_table("Measures", comparison, rows, HACKING_COLUMNS),) if rows else (),
        folded=_table_of_runs(comparison, "hacking", HACKING_COLUMNS) + verdicts,
    )


def _meaning_of_prompts(comparison: Comparison) -> list[str]:
    return [] if all(run.settings.holds_out for run in comparison.runs) else [NOT_HELD_OUT]


def _meaning_of_intervals(rows: Sequence[HeldOutRow]) -> list[str]:
    single = [INTERVAL_OVER_PAIRS] if any(row.runs == 1 for row in rows) else []
    several = [INTERVAL_OVER_SEEDS] if any(row.runs > 1 for row in rows) else []
    return single + several


def _points(method: Method) -> tuple[str, ...]:
    """What an only run's verdict says; of several runs, in how many of them each measure moved."""
    evaluations = [run.evaluation for run in method.runs if run.evaluation is not None]
    if len(method.runs) == 1:
        return tuple(f"{method.label}: {evaluation.verdict}" for evaluation in evaluations if evaluation.verdict)
    moved = Counter(name for evaluation in evaluations for name, row in evaluation.hacking.items() if row.moved)
    measured = sum(any(row.moved is not None for row in evaluation.hacking.values()) for evaluation in evaluations)
    if not measured:
        return ()
    told = ", ".join(f"{name} in {runs}" for name, runs in moved.most_common()) or "no measure in any"
    return (f"{method.label}: beyond the base model's own spread moved {told} of {count(measured)} runs.",)


def _verdicts(comparison: Comparison) -> tuple[Table, ...]:
    """The verdict of every run, where there are several of a method."""
    rows = tuple(
        (method.label, str(run.seed), run.evaluation.verdict)
        for method in comparison.methods
        for run in method.runs
        if run.evaluation is not None and run.evaluation.verdict is not None
    )
    if not rows or len(comparison.runs) == len(comparison.methods):
        return ()
    return (Table("Verdicts, run by run", ("method", "seed", "verdict"), rows),)


def _table(caption: str, comparison: Comparison, rows: Sequence[HeldOutRow], columns: tuple[str, ...]) -> Table:
    """A row per measure and method; who and how many are left out where there is one."""
    who = ("method",) if len(comparison.methods) > 1 else ()
    how_many = ("runs",) if len(comparison.runs) > len(comparison.methods) else ()
    return table_of(caption, rows, ("measure", *who, *how_many, *columns))


def _table_of_runs(comparison: Comparison, kind: str, columns: tuple[str, ...]) -> tuple[Table, ...]:
    """A row per run, where that says more than the table over seeds."""
    rows = [row for row in rows_of_runs(comparison) if row.kind == kind]
    if not rows or len(comparison.runs) == len(comparison.methods):
        return ()
    return (table_of("Run by run", rows, ("measure", "method", "run", "seed", *columns)),)


def table_of(caption: str, rows: Sequence[HeldOutRow], columns: tuple[str, ...]) -> Table:
    """A row of cells per row; `columns` are keys of `_cells`."""
    return Table(caption, columns, tuple(tuple(_cells(row)[column] for column in columns) for row in rows))


def _cells(row: HeldOutRow) -> dict[str, str]:
    return {
        "measure": row.measure,
        "method": row.method,
        "adapter": row.method,
        "run": row.run or MISSING,
        "seed": MISSING if row.seed is None else str(row.seed),
        "runs": count(row.runs),
        "base": number(row.base),
        "aligned": number(row.aligned),
        "difference": signed(row.difference),
        "95 % interval": interval(row.low, row.high),
        "win rate": number(row.win_rate, decimals=3),
        "pairs": MISSING if row.pairs is None else count(row.pairs),
    }


def difference_charts(rows: Sequence[HeldOutRow], looks: dict[str, Look]) -> tuple[Chart, ...]:
    """The differences of all methods, or adapters, a chart per reward."""
    charts = []
    for measure in dict.fromkeys(row.measure for row in rows):
        own = [row for row in rows if row.measure == measure]
        words = "; ".join(f"{row.method} {signed(row.difference)} {interval(row.low, row.high)}" for row in own)
        bars = [Bar(row.method, row.difference, row.low, row.high, looks[row.method]) for row in own]
        alt = f"Mean difference and 95 % interval of {measure}: {words}."
        charts.append(Chart(measure, alt, interval_chart(bars, "aligned − base")))
    return tuple(charts)
