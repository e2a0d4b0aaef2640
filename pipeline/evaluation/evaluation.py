"""Base against aligned: rewards with intervals, measures of hacking, and the images both were made from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.hacking import HackingComparison, compare_hacking, verdict
from pipeline.evaluation.measured import DrawnImages
from pipeline.statistics import PairedComparison, compare_paired, resampling_groups


@dataclass(frozen=True)
class Evaluation:
    """One adapter against the base model.

    Attributes:
        rewards: comparison by reward, the most important first.
        aspects: comparison by aspect of a reward, such as the attributes that the demo's judge reads.
        hacking: comparison by measure that no reward asks for.
        base, aligned: the images; sample i of both has the same prompt and the same noise.
        changes: (N,) how much the first reward of each pair changed.
    """

    rewards: dict[str, PairedComparison]
    aspects: dict[str, PairedComparison]
    hacking: dict[str, HackingComparison]
    base: DrawnImages
    aligned: DrawnImages
    changes: NDArray[np.floating]

    @property
    def verdict(self) -> str:
        """Which measures of hacking have moved, in one line."""
        return verdict(self.hacking)

    def rewards_as_json(self) -> dict[str, Any]:
        """The comparisons by reward, for summary.json."""
        return {name: asdict(row) for name, row in self.rewards.items()}

    def as_json(self) -> dict[str, Any]:
        """evaluation.json, as docs/report.md describes it and the report reads it."""
        rows = {name: asdict(row) for name, row in (self.rewards | self.aspects).items()}
        return {
            "rewards": rows,
            "hacking": {name: asdict(row) for name, row in self.hacking.items()},
            "verdict": self.verdict,
        }


def compare_drawn(
    base: DrawnImages,
    aligned: DrawnImages,
    reward_labels: Sequence[str],
    aspect_labels: Sequence[str],
    seed: int,
    sums: tuple[str, NDArray[np.floating], NDArray[np.floating]] | None = None,
) -> Evaluation:
    """Compare two sets of N images of the same prompts and noise.

    Args:
        reward_labels: names of the columns of `scores`.
        aspect_labels: names of the columns of `aspects`.
        seed: seed of the intervals.
        sums: where a weighted sum of rewards stands above them: its name, and its values (N,) for base and aligned.

    Raises:
        ValueError: the sets are not of the same prompts, or a score is not finite.
    """
    if base.prompts != aligned.prompts:
        raise ValueError(
            f"{len(base.prompts)} images of the base model and {len(aligned.prompts)} of the aligned one do not pair up"
            ": draw both from the same prompts in the same order"
        )
    groups = resampling_groups(base.groups)
    columns = {label: (base.scores[:, i], aligned.scores[:, i]) for i, label in enumerate(reward_labels)}
    if sums is not None:
        columns = {sums[0]: (sums[1], sums[2])} | columns
    rewards = {label: compare_paired(before, after, seed, groups=groups) for label, (before, after) in columns.items()}
    first_base, first_aligned = next(iter(columns.values()))
    return Evaluation(
        rewards=rewards,
        aspects=_compare_aspects(base, aligned, aspect_labels, seed),
        hacking=compare_hacking(base, aligned, seed),
        base=base,
        aligned=aligned,
        changes=first_aligned - first_base,
    )


def _compare_aspects(
    base: DrawnImages, aligned: DrawnImages, labels: Sequence[str], seed: int
) -> dict[str, PairedComparison]:
    """Over the images whose prompts state the aspect; an aspect that fewer than two state is left out."""
    comparisons = {}
    for column, label in enumerate(labels):
        stated = ~np.isnan(base.aspects[:, column])
        if stated.sum() > 1:
            before, after = base.aspects[stated, column], aligned.aspects[stated, column]
            groups = resampling_groups(base.groups[stated])
            comparisons[label] = compare_paired(before, after, seed, groups=groups)
    return comparisons
