"""A plan in tables and sentences: for --dry-run, and for the section of the report that says what was compared."""

from collections.abc import Mapping, Sequence

from pipeline.comparison.budget import in_words
from pipeline.comparison.loading import divergence, is_finished, is_over
from pipeline.comparison.plan import Cell, Plan
from pipeline.comparison.stopwatch import seconds_spent
from pipeline.comparison.sweep import SweepResult
from pipeline.config import RunSettings
from pipeline.report.content import Section, Table
from pipeline.report.evaluation_file import RewardComparison
from pipeline.report.explanations import learning_from_pairs
from pipeline.report.wording import MISSING, count, duration, interval, listed, number, signed

PLAN_COLUMNS = ("variant", "method", "learning rate", "iterations", "trajectories", "network calls")
SWEEP_COLUMNS = ("variant", "learning rate", "iterations", "base", "aligned", "difference", "95 % interval", "chosen")


def overview(plan: Plan) -> str:
    """The plan as plain text, with the learning rates that are to be tried."""
    rates = {cell.label: _rates(cell) for cell in plan.cells}
    sentences = [budget_sentence(plan), *_left_out(plan), _amount_of_runs(plan)]
    return _aligned(_plan_table(plan, rates)) + "\n" + "\n".join(sentences) + "\n"


def plan_section(plan: Plan, chosen: Mapping[str, float], results: Sequence[SweepResult]) -> Section:
    """What was compared at which budget, the chosen learning rates, and what the sweep found."""
    rates = {cell.label: f"{chosen[cell.label]:g}" if cell.label in chosen else MISSING for cell in plan.cells}
    sentences = [budget_sentence(plan), _amount_of_runs(plan)]
    sentences += [_sweep_sentence(plan)] if plan.sweep_runs else []
    seconds = seconds_spent(plan.folder)
    sentences += [] if seconds is None else [f"All of it took {duration(seconds)}, evaluation included."]
    return Section(
        "What was compared",
        paragraphs=tuple(sentences),
        points=(
            *_left_out(plan),
            *missing_runs(plan, chosen),
            *_at_the_edge(plan, chosen),
            *_never_sure(plan, chosen, results),
        ),
        tables=(_plan_table(plan, rates),),
        folded=(_sweep_table(results, chosen),) if results else (),
    )


def budget_sentence(plan: Plan) -> str:
    """What each run may spend."""
    budget = plan.comparison.budget
    amount = f"{budget.amount:,.10g} {in_words(budget)}"
    if budget.unit == "seconds":
        return f"Every run ends with the iteration in which its {amount} of rollouts and learning are spent."
    return f"Every run makes as many whole iterations as {amount} buy."


def _sweep_sentence(plan: Plan) -> str:
    sweep = plan.comparison.sweep
    assert sweep is not None, "there are no runs of a sweep without one"
    from_pairs = [cell.label for cell in plan.cells if cell.sweep and not cell.settings.rewards_learnt_from]
    sentence = (
        f"Learning rates were chosen by runs of their own, with seed {sweep.seed} and {sweep.budget_share:.0%} of the "
        "budget: the one with the highest lower end of the interval by which the reward that its run names had risen, "
        f"over {sweep.images} pairs of images, from prompts that are in no held-out evaluation."
    )
    return " ".join([sentence, *learning_from_pairs(from_pairs)])


def _left_out(plan: Plan) -> list[str]:
    return [
        f"{variant} was not run with the reward {reward}: the comparison's file says that they do not go together."
        for variant, reward in plan.left_out
    ]


def missing_runs(plan: Plan, chosen: Mapping[str, float]) -> list[str]:
    """The runs that the tables lack, for a mean over those that came through flatters a method whose others did not."""
    tried = {cell.label for cell in plan.cells if cell.sweep and all(map(is_over, cell.sweep.values()))}
    without = [cell.label for cell in plan.cells if cell.label not in chosen]
    points = [
        f"{label} has no runs: with every learning rate of the sweep it diverged."
        for label in without
        if label in tried
    ]
    points += [f"{label} has no runs: its sweep is not complete." for label in without if label not in tried]
    for run in plan.runs(chosen):
        reason = divergence(run)
        if reason is not None:
            points.append(f"{run.cell}, seed {run.settings.seed}, diverged and is left out: {reason}")
        elif not is_finished(run):
            points.append(f"{run.cell}, seed {run.settings.seed}, is not finished and is left out.")
    return points


def _at_the_edge(plan: Plan, chosen: Mapping[str, float]) -> list[str]:
    """The variants whose best learning rate may not have been tried."""
    points = []
    for cell in plan.cells:
        rates = sorted(cell.sweep)
        if len(rates) > 1 and chosen.get(cell.label) in (rates[0], rates[-1]):
            end, beyond = ("highest", "higher") if chosen[cell.label] == rates[-1] else ("lowest", "lower")
            points.append(f"{cell.label} got the {end} learning rate of its sweep; a {beyond} one may serve it better.")
    return points


def _never_sure(plan: Plan, chosen: Mapping[str, float], results: Sequence[SweepResult]) -> list[str]:
    """The variants of which no learning rate was seen to gain, so that the choice fell on the one that risked least."""
    sure = {one.cell for one in results if one.comparison is not None and one.comparison.low > 0}
    return [
        f"In the sweep of {cell.label} no learning rate's gain was sure; the choice is that which risked least."
        for cell in plan.cells
        if cell.sweep and cell.label in chosen and cell.label not in sure
    ]


def _amount_of_runs(plan: Plan) -> str:
    runs, seeds = len(plan.cells) * len(plan.comparison.seeds), listed([str(seed) for seed in plan.comparison.seeds])
    sweep = f", after {len(plan.sweep_runs)} short ones that choose learning rates" if plan.sweep_runs else ""
    return f"{runs} runs, of seed {seeds} for each variant{sweep}."


def _plan_table(plan: Plan, rates: Mapping[str, str]) -> Table:
    rows = [(cell.label, cell.settings.method.title, rates[cell.label], *_work(cell.settings)) for cell in plan.cells]
    return Table("What each variant's runs do", PLAN_COLUMNS, tuple(rows))


def _rates(cell: Cell) -> str:
    return listed([f"{rate:g}" for rate in cell.sweep or (cell.settings.learning_rate,)])


def _work(settings: RunSettings) -> tuple[str, str, str]:
    """Iterations, trajectories and network calls of a run; dashes where its time decides."""
    if settings.budget_seconds is not None:
        return MISSING, MISSING, MISSING
    trajectories = settings.iterations * settings.rollout.trajectories
    calls = trajectories * settings.network_calls_per_trajectory
    return count(settings.iterations), count(trajectories), count(calls)


def _sweep_table(results: Sequence[SweepResult], chosen: Mapping[str, float]) -> Table:
    rows = [
        (
            result.cell,
            f"{result.learning_rate:g}",
            str(result.iterations),
            *_found(result.comparison),
            "yes" if chosen.get(result.cell) == result.learning_rate else "no",
        )
        for result in results
    ]
    return Table("What the sweep of learning rates found", SWEEP_COLUMNS, tuple(rows))


def _found(comparison: RewardComparison | None) -> tuple[str, str, str, str]:
    if comparison is None:
        return MISSING, MISSING, "diverged", MISSING
    return (
        number(comparison.base_mean),
        number(comparison.aligned_mean),
        signed(comparison.difference),
        interval(comparison.low, comparison.high),
    )


def _aligned(table: Table) -> str:
    """The table in columns of a terminal."""
    rows = [table.columns, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)
