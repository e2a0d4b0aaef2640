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
) -> PairedComparison:
    """Compare two score lists of equal length (N,), entry i of both made from the same prompt and seed.

    Pairs are resampled whole, so the spread between prompts does not widen the interval. The percentile bootstrap is
    used because it stays defined when all differences are equal, where the corrected ones return NaN.

    Args:
        base: (N,) scores of the base model.
        aligned: (N,) scores of the aligned model.
        seed: seed of the resampling: the same input gives the same interval.
        n_resamples: number of bootstrap resamples.

    Raises:
        ValueError: lengths that differ, fewer than two pairs, or a score that is not finite.
    """
    base_scores, aligned_scores = np.asarray(base, dtype=np.float64), np.asarray(aligned, dtype=np.float64)
    if base_scores.ndim != 1 or base_scores.shape != aligned_scores.shape:
        raise ValueError(f"scores do not pair up: shapes {base_scores.shape} (base), {aligned_scores.shape} (aligned)")
    if base_scores.size < 2:
        raise ValueError(f"a bootstrap interval needs at least 2 pairs, got {base_scores.size}")
    if not (np.isfinite(base_scores).all() and np.isfinite(aligned_scores).all()):
        raise ValueError("scores hold NaN or infinity: an interval over them means nothing")
    differences = aligned_scores - base_scores
    interval = bootstrap(
        (differences,),
        np.mean,
        n_resamples=n_resamples,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedComparison(
        base_mean=float(base_scores.mean()),
        aligned_mean=float(aligned_scores.mean()),
        difference=float(differences.mean()),
        low=float(interval.low),
        high=float(interval.high),
        win_rate=float(np.mean(differences > 0) + 0.5 * np.mean(differences == 0)),
        pairs=int(differences.size),
    )
