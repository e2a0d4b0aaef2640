"""Is one method better than another? Their runs are of the same prompts, noise and seeds, so they make pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from pipeline.report.aggregate import estimate_of_runs
from pipeline.report.comparison import Comparison, Method
from pipeline.report.pairs import share_base, share_pairs


@dataclass(frozen=True)
class MethodDifference:
    """A reward of one method's images above another's, over pairs that share prompt, noise and seed.

    Attributes:
        measure: the reward.
        trained: whether both trained on it.
        first, second: the methods' labels.
        difference: mean of first - second over pairs and seeds.
        low, high: its 95 % interval, over prompts, and over seeds where there are several.
        win_rate: share of pairs in which the first method's image scores higher; a tie counts one half.
        pairs: pairs of images, all seeds together.
        runs: seeds that both methods have.
    """

    measure: str
    trained: bool
    first: str
    second: str
    difference: float
    low: float
    high: float
    win_rate: float
    pairs: int
    runs: int


def method_differences(comparison: Comparison) -> list[MethodDifference]:
    """A row per reward and two methods whose runs name the same reward and were evaluated on the same pairs."""
    rows = [
        row
        for first, second in combinations(comparison.methods, 2)
        if _weighted(first) == _weighted(second)
        for row in _rows(first, second)
    ]
    measures = list(dict.fromkeys(row.measure for row in rows))
    return sorted(rows, key=lambda row: measures.index(row.measure))


def _weighted(method: Method) -> list[tuple[str, str | None, float]]:
    """The rewards that its runs name, by what makes them other ones."""
    return [(reward.name, reward.path, reward.weight) for reward in method.runs[0].settings.rewards]


def _names_of_trained(method: Method) -> set[str]:
    """What an evaluation may call the rewards it learnt from: by name, and path where two share a name."""
    rewards = method.runs[0].settings.rewards_learnt_from
    return {name for reward in rewards for name in (reward.name, f"{reward.name} ({reward.path})")}


def _rows(first: Method, second: Method) -> Iterator[MethodDifference]:
    ours, theirs = ({run.seed: run.pairs for run in method.runs if run.pairs is not None} for method in (first, second))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds or not all(share_base(ours[seed], theirs[seed]) for seed in seeds):
        return
    table = ours[seeds[0]]
    for measure in table[table.kind == "reward"].index.unique("measure"):
        if not share_pairs([runs[seed] for runs in (ours, theirs) for seed in seeds], measure):
            continue
        differences = [ours[seed].loc[measure].aligned - theirs[seed].loc[measure].aligned for seed in seeds]
        estimate, together = estimate_of_runs(differences), pd.concat(differences)
        yield MethodDifference(
            measure=measure,
            trained=measure in _names_of_trained(first) & _names_of_trained(second),
            first=first.label,
            second=second.label,
            difference=estimate.mean,
            low=estimate.low,
            high=estimate.high,
            win_rate=float((together > 0).mean() + 0.5 * (together == 0).mean()),
            pairs=len(together),
            runs=len(seeds),
        )
