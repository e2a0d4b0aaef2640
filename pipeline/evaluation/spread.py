"""How much a measure of the base model changes when nothing but the noise does: the yardstick for reward hacking."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pipeline.statistics import CONFIDENCE


def redraw_spread(values: NDArray[np.floating], groups: NDArray[np.integer]) -> float | None:
    """The change of the mean that drawing the base model again, from other noise, exceeds once in 20 times.

    Two independent draws of the same prompts differ in their mean by a deviation of sqrt(2 s^2 / n), s^2 being the
    variance of images of one prompt, pooled over the prompts. None unless most prompts have two images: one does not
    tell what the noise does from what the prompts differ in.

    Args:
        values: (n,) of the base model.
        groups: (n,) the prompt of each.
    """
    _, places, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if (counts >= 2).mean() <= 0.5:
        return None
    values = np.asarray(values, dtype=np.float64)
    means = np.bincount(places, weights=values) / counts
    variance = np.square(values - means[places]).sum() / (counts - 1).sum()
    return float(norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(2 * variance / len(values)))
