"""Runs that differ in their seed alone, taken together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student_t

from pipeline.report.history import Series
from pipeline.statistics import CONFIDENCE, mean_interval, resampling_groups

RESAMPLES = 1999


@dataclass(frozen=True)
class Band:
    """Mean and range of a number over runs, by iteration or by block of iterations.

    Attributes:
        x, mean, low, high: (N,) float64; NaN where no run has a number.
    """

    x: Series
    mean: Series
    low: Series
    high: Series


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float


def band_over_runs(curves: Sequence[tuple[Series, Series]], block: int = 1) -> Band:
    """Mean, minimum and maximum over runs, of the mean x.

    Args:
        curves: (x, y) of each run, both (N_run,); runs may differ in length. The band ends with the shortest: a mean
            over fewer runs from some iteration on would jump there for no other reason.
        block: consecutive iterations of a run that are averaged before runs are compared; see `block_means`.

    Raises:
        ValueError: no run.
    """
    if not curves:
        raise ValueError("a band needs at least one run")
    length = min(len(y) for _, y in curves)
    xs, ys = (np.stack([block_means(curve[axis][:length], block) for curve in curves]) for axis in (0, 1))
    numbers = np.ma.masked_invalid(ys)
    return Band(
        x=xs.mean(axis=0),
        mean=numbers.mean(axis=0).filled(np.nan),
        low=numbers.min(axis=0).filled(np.nan),
        high=numbers.max(axis=0).filled(np.nan),
    )


def block_means(values: NDArray[np.float64], block: int) -> Series:
    """Means of `block` consecutive values, (ceil(N / block),) float64; the last block may be shorter.

    Values that are NaN are left out; a block of nothing else is NaN.
    """
    padding = -len(values) % block
    padded = np.concatenate([values, np.full(padding, np.nan)]).reshape(-1, block)
    return np.ma.masked_invalid(padded).mean(axis=1).filled(np.nan)


def estimate_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's 95 % interval, which is wide for few seeds: for three, 2.5 standard deviations.

    Raises:
        ValueError: fewer than two seeds, which have no spread.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2, got {len(values)}")
    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean())
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1))
    half = quantile * float(numbers.std(ddof=1)) / float(np.sqrt(len(numbers)))
    return Estimate(mean, mean - half, mean + half)


def with_error_over_prompts(over_seeds: Estimate, over_prompts: Estimate) -> Estimate:
    """`over_seeds` with an interval that holds for other prompts as well.

    Runs evaluated on the same prompts share the error of that choice, which their spread does not show. Both errors are
    taken for independent, so half widths add as squares; what depends on a seed and a prompt is in both, which makes
    the interval a little too wide rather than too narrow.
    """
    down = math.hypot(over_seeds.mean - over_seeds.low, over_prompts.mean - over_prompts.low)
    up = math.hypot(over_seeds.high - over_seeds.mean, over_prompts.high - over_prompts.mean)
    return Estimate(over_seeds.mean, over_seeds.mean - down, over_seeds.mean + up)


def estimate_of_runs(differences: Sequence[pd.Series]) -> Estimate:
    """The mean of differences that all runs took of the same pairs, with its 95 % interval.

    Of one run it is over prompts, whose pairs are resampled together, or over the pairs of a single prompt; of several
    it is over seeds too.

    Args:
        differences: of each run (N,), indexed by prompt and sample, the same in all runs.
    """
    table = pd.concat(differences, axis=1, join="inner")
    assert len(table) == len(differences[0]) > 0, "the runs are of different pairs"
    mean = table.mean(axis=1)
    prompts, _ = pd.factorize(mean.index.get_level_values("prompt"))
    low, high = mean_interval(mean.to_numpy(), resampling_groups(prompts), seed=0, n_resamples=RESAMPLES)
    over_prompts = Estimate(float(mean.mean()), low, high)
    if len(differences) == 1:
        return over_prompts
    return with_error_over_prompts(estimate_over_seeds(table.mean(axis=0).tolist()), over_prompts)
