"""How the reward of the rollouts rose, over each of the things it cost."""

from collections.abc import Sequence
from math import ceil

from pipeline.report.aggregate import Band, band_over_runs, block_means
from pipeline.report.charts import Curve, line_chart
from pipeline.report.comparison import Comparison, Method
from pipeline.report.content import Chart, Section, Table
from pipeline.report.costs import COSTS, NETWORK_CALLS, SECONDS, TRAJECTORIES, Cost
from pipeline.report.explanations import BANDS, BASE_COMES_FIRST, COSTS_EXPLAINED, ROLLOUT_REWARD, points_are_means
from pipeline.report.history import RunHistory, Series
from pipeline.report.looks import Look, looks_of
from pipeline.report.wording import SECONDS_OF_UNITS, count, duration, evenly_spaced, number, time_unit

MOST_POINTS = 120
"""Points of a curve; of a longer run each point is the mean of a block of iterations."""

MOST_ROWS = 11


def training_section(comparison: Comparison) -> Section:
    """Charts of the reward over every cost, for each reward that is trained on; the numbers in a folded table."""
    looks = looks_of(comparison)
    block = block_size(comparison.runs)
    drawing = [method for method in comparison.methods if method.runs[0].settings.method.draws_images]
    titles = _reward_titles(drawing)
    by_reward: dict[str, list[Method]] = {}
    for method in drawing:
        by_reward.setdefault(titles[method.label], []).append(method)
    first_point = points_are_means(block) if block > 1 else BASE_COMES_FIRST
    paragraphs = [f"{ROLLOUT_REWARD} {first_point}", COSTS_EXPLAINED]
    if len(drawing) < len(comparison.methods):
        others = ", ".join(method.label for method in comparison.methods if method not in drawing)
        paragraphs.append(f"Training draws no images here, and so has no rewards to show: {others}.")
    if len(comparison.runs) > len(comparison.methods):
        paragraphs.append(BANDS)
    return Section(
        "Reward while training",
        paragraphs=tuple(paragraphs),
        charts=tuple(
            _chart(reward, methods, cost, block, looks) for reward, methods in by_reward.items() for cost in COSTS
        ),
        folded=(_table(drawing),) if drawing else (),
    )


def _reward_titles(methods: Sequence[Method]) -> dict[str, str]:
    """What each method is trained on, by its label; with paths where other weights go by the same name."""
    trained = {method.label: method.runs[0].settings for method in methods}
    paths: dict[str, set[tuple[str | None, ...]]] = {}
    for settings in trained.values():
        paths.setdefault(settings.reward_title, set()).add(tuple(reward.path for reward in settings.rewards))
    return {
        label: settings.reward_title
        if len(paths[settings.reward_title]) == 1
        else f"{settings.reward_title} ({', '.join(str(reward.path) for reward in settings.rewards)})"
        for label, settings in trained.items()
    }


def block_size(runs: Sequence[RunHistory]) -> int:
    """Iterations that make one point of a chart."""
    return ceil(max(len(run.metrics) for run in runs) / MOST_POINTS)


def metric_band(method: Method, metric: str, cost: Cost, block: int = 1) -> Band:
    """A metric over a cost, over the seeds of a method."""
    return band_over_runs([(cost.before(run), run.series(metric)) for run in method.runs], block)


def _chart(reward: str, methods: Sequence[Method], cost: Cost, block: int, looks: dict[str, Look]) -> Chart:
    label, scale = cost.label, 1.0
    if cost is SECONDS:
        label = time_unit(max(float(cost.before(run)[-1]) for method in methods for run in method.runs))
        scale = SECONDS_OF_UNITS[label]
    curves = [_curve(method, cost, block, scale, looks[method.label]) for method in methods]
    words = "; ".join(
        f"{curve.label} from {number(curve.band.mean[0])} at {curve.band.x[0]:.4g} to "
        f"{number(curve.band.mean[-1])} at {curve.band.x[-1]:.4g}"
        for curve in curves
    )
    # The page of one method has its name in the title.
    shown = curves if len(looks) > 1 else [Curve("", curve.band, curve.look, curve.repeats) for curve in curves]
    return Chart(f"{reward} by {cost.label}", f"{reward} over {label}: {words}.", line_chart(shown, label, reward))


def _curve(method: Method, cost: Cost, block: int, scale: float, look: Look) -> Curve:
    band = metric_band(method, "reward", cost, block)
    repeats = tuple(_repeat(run, cost, block, scale) for run in method.runs) if len(method.runs) > 1 else ()
    return Curve(method.label, Band(band.x / scale, band.mean, band.low, band.high), look, repeats)


def _repeat(run: RunHistory, cost: Cost, block: int, scale: float) -> tuple[Series, Series]:
    return block_means(cost.before(run), block) / scale, block_means(run.series("reward"), block)


def _table(methods: Sequence[Method]) -> Table:
    """The reward at some iterations of each method."""
    rows = []
    for method in methods:
        trajectories, calls, seconds = (
            metric_band(method, "reward", cost) for cost in (TRAJECTORIES, NETWORK_CALLS, SECONDS)
        )
        rows += [
            (
                method.label,
                str(index),
                count(trajectories.x[index]),
                count(calls.x[index]),
                duration(seconds.x[index]),
                number(trajectories.mean[index]),
                number(trajectories.low[index]),
                number(trajectories.high[index]),
            )
            for index in evenly_spaced(len(trajectories.x), MOST_ROWS)
        ]
    columns = ("method", "iteration", "trajectories", "network calls", "time", "reward", "minimum", "maximum")
    return Table("Reward at some iterations", columns, tuple(rows))
