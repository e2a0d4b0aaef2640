"""A mean with its bootstrap interval over prompts, as the tables hold it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics import mean_interval, resampling_groups

Interval = dict[str, float]
"""mean, low and high: the mean and its 95 % interval."""


def interval_over_prompts(values: NDArray[np.floating], prompts: Sequence[str], seed: int) -> Interval:
    """Of values (N,), each of the sample of one of `prompts` (N); samples of one prompt are resampled together.

    Those of a single prompt are resampled one by one.
    """
    _, groups = np.unique(np.asarray(prompts), return_inverse=True)
    low, high = mean_interval(values, resampling_groups(groups), seed)
    return {"mean": float(values.mean()), "low": low, "high": high}
