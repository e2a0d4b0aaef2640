"""Is the aligned model better than the base model on the same prompts and seeds, and by how much?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedComparison:
    """Aligned against base scores over pairs that share prompt and seed.

    Attributes:
        base_mean: mean score of the base model.
        aligned_mean: mean score of the aligned model.
        difference: mean of aligned - base.
        low: lower end of the 95 % bootstrap interval of ``difference``.
        high: upper end of it.
        win_rate: share of pairs in which the aligned model scores higher; a tie counts one half.
        pairs: number of pairs.
    """

    base_mean: float
    aligned_mean: float
    difference: float
    low: float
    high: float
    win_rate: float
    pairs: int


def compare_paired(
    base: Sequence[float] | NDArray[np.floating],
    aligned: Sequence[float] | NDArray[np.floating],
    seed: int,
    n_resamples: int = 9999,
    groups: Sequence[int] | NDArray[np.integer] | None = None,
) -> PairedComparison:
    """Compare two score lists of equal length (N,), entry i of both made from the same prompt and seed.

    Pairs are resampled whole, so the spread between prompts does not widen the interval. Pairs of one group, such as
    the images of one prompt, are not independent: a group is drawn with all its pairs or not at all. The percentile
    bootstrap is used because it stays defined when all differences are equal, where the corrected ones return NaN.

    Args:
        base: (N,) scores of the base model.
        aligned: (N,) scores of the aligned model.
        seed: seed of the resampling: the same input gives the same interval.
        n_resamples: number of bootstrap resamples.
        groups: (N,) the group of each pair, any integers; None where every pair is one of its own.

    Raises:
        ValueError: lengths that differ, fewer than two pairs or groups, or a score that is not finite.
    """
    base_scores, aligned_scores = np.asarray(base, dtype=np.float64), np.asarray(aligned, dtype=np.float64)
    if base_scores.ndim != 1 or base_scores.shape != aligned_scores.shape:
        raise ValueError(f"scores do not pair up: shapes {base_scores.shape} (base), {aligned_scores.shape} (aligned)")
    if base_scores.size < 2:
        raise ValueError(f"a bootstrap interval needs at least 2 pairs, got {base_scores.size}")
    if not (np.isfinite(base_scores).all() and np.isfinite(aligned_scores).all()):
        raise ValueError("scores hold NaN or infinity: an interval over them means nothing")
    differences = aligned_scores - base_scores
    low, high = mean_interval(differences, np.arange(len(differences)) if groups is None else groups, seed, n_resamples)
    return PairedComparison(
        base_mean=float(base_scores.mean()),
        aligned_mean=float(aligned_scores.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        win_rate=float(np.mean(differences > 0) + 0.5 * np.mean(differences == 0)),
        pairs=int(differences.size),
    )


def resampling_groups(groups: NDArray[np.integer]) -> NDArray[np.integer]:
    """What a bootstrap resamples: prompts; the images of a single prompt, about which alone its interval speaks."""
    return groups if len(np.unique(groups)) > 1 else np.arange(len(groups))


def mean_interval(
    values: NDArray[np.floating], groups: Sequence[int] | NDArray[np.integer], seed: int, n_resamples: int = 9999
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of ``values`` (N,), whole ``groups`` (N,) being resampled.

    Raises:
        ValueError: ``groups`` are not N, or there is only one of them.
    """
    if len(groups) != len(values):
        raise ValueError(f"{len(values)} values and {len(groups)} groups do not pair up")
    _, places = np.unique(groups, return_inverse=True)
    counts = np.bincount(places)
    if len(counts) < 2:
        raise ValueError("a bootstrap interval needs at least 2 groups (prompts), got 1: it resamples whole groups")
    interval = bootstrap(
        (np.bincount(places, weights=values), counts),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=n_resamples,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
