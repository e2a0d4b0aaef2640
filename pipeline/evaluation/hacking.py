"""What a rise of the reward cost elsewhere: measures of both models, and which of them have moved."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.diversity import pairwise_diversity
from pipeline.evaluation.image_statistics import IMAGE_STATISTICS
from pipeline.evaluation.measured import DrawnImages
from pipeline.evaluation.spread import redraw_spread
from pipeline.statistics import mean_interval, resampling_groups

DIVERSITY, DRIFT = "diversity", "drift"


@dataclass(frozen=True)
class HackingComparison:
    """A measure of the aligned model against the base model.

    Attributes:
        base, aligned: mean of each.
        low, high: 95 % bootstrap interval of the mean change, whole prompts being resampled.
        spread: `redraw_spread` of the base model; None where no prompt has two images, and for the drift, which the
            base has none of.
        moved: whether the interval leaves zero out and the change exceeds the spread; None where there is no spread to
            tell it by: the drift of any adapter that does anything is above zero. Noise is shared by a pair, so the
            interval alone would call changes that no eye can see.
    """

    base: float
    aligned: float
    low: float
    high: float
    spread: float | None
    moved: bool | None


def compare_hacking(base: DrawnImages, aligned: DrawnImages, seed: int) -> dict[str, HackingComparison]:
    """Every measure by its name; diversity only where images were embedded and two prompts have two images each."""
    groups = base.groups
    measures = {
        name: _compare(base.statistics[:, column], aligned.statistics[:, column], groups, groups, seed)
        for column, name in enumerate(IMAGE_STATISTICS)
    }
    if base.embeddings.shape[1]:
        values = [pairwise_diversity(drawn.embeddings, groups) for drawn in (base, aligned)]
        measured = np.flatnonzero(~np.isnan(values[0]))
        if len(measured) > 1:
            # A prompt has one, so prompts differ in more than noise here: the spread is rather too wide.
            alike = np.zeros_like(measured)
            measures[DIVERSITY] = _compare(values[0][measured], values[1][measured], measured, alike, seed)
    low, high = mean_interval(aligned.drift, resampling_groups(groups), seed)
    measures[DRIFT] = HackingComparison(0.0, float(aligned.drift.mean()), low, high, spread=None, moved=None)
    return measures


def verdict(measures: dict[str, HackingComparison]) -> str:
    """One line: which measures moved, how far the model is from the base, and what could not be measured."""
    moved = [
        f"{name} ({row.base:.4g} to {row.aligned:.4g}, spread {row.spread:.2g})"
        for name, row in measures.items()
        if row.moved
    ]
    if moved:
        told = f"Moved beyond the base model's own spread: {', '.join(moved)}."
    elif all(row.moved is None for row in measures.values()):
        told = "Whether a measure moved beyond the base model's own spread takes two images of a prompt to tell."
    else:
        told = "No measure moved beyond the base model's own spread."
    missing = (
        "" if DIVERSITY in measures else " Diversity was not measured: it needs a CLIP and two images of a prompt."
    )
    return f"{told} Drift {measures[DRIFT].aligned:.2g}.{missing}"


def _compare(
    base: NDArray[np.floating],
    aligned: NDArray[np.floating],
    groups: NDArray[np.integer],
    alike: NDArray[np.integer],
    seed: int,
) -> HackingComparison:
    """Two (n,) of pairs, with the prompt of each, and which of them would be alike but for the noise."""
    changes = np.asarray(aligned, dtype=np.float64) - base
    low, high = mean_interval(changes, resampling_groups(groups), seed)
    spread = redraw_spread(base, alike)
    excludes_zero = low > 0 or high < 0
    moved = None if spread is None else bool(excludes_zero and abs(changes.mean()) > spread)
    return HackingComparison(float(np.mean(base)), float(np.mean(aligned)), low, high, spread, moved)
