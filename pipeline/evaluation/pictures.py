"""Pairs of images that show an evaluation: where the first reward rose most, where it fell most, and in between."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.evaluation import Evaluation
from pipeline.images import before_after_grid

MOST_CHANGED_PAIRS = 12
PAIRS_OF_A_KIND = 6


def most_changed_picture(evaluation: Evaluation) -> Image.Image:
    """Base beside aligned, under their prompts: the pairs whose reward changed most, for better or worse.

    Most pairs hardly differ after a short run; the order of the pairs is that of their samples.
    """
    chosen = np.argsort(-np.abs(evaluation.changes), kind="stable")[:MOST_CHANGED_PAIRS]
    return _grid(evaluation, sorted(chosen.tolist()), list(evaluation.base.prompts))


def change_pictures(evaluation: Evaluation) -> dict[str, Image.Image]:
    """best, median and worst: the pairs whose reward rose most, changed as most did, and fell most.

    Each pair stands under the change and the prompt, the most telling one first.
    """
    captions = [
        f"{change:+.3g}: {prompt}" for change, prompt in zip(evaluation.changes, evaluation.base.prompts, strict=True)
    ]
    return {kind: _grid(evaluation, pairs, captions) for kind, pairs in chosen_pairs(evaluation.changes).items()}


def chosen_pairs(changes: NDArray[np.floating]) -> dict[str, list[int]]:
    """Which of N pairs `change_pictures` shows, at most PAIRS_OF_A_KIND of a kind; of few pairs some come twice."""
    by_change = np.argsort(changes, kind="stable")
    from_median = np.argsort(np.abs(changes - np.median(changes)), kind="stable")
    kinds = {"best": by_change[::-1], "median": from_median, "worst": by_change}
    return {kind: pairs[:PAIRS_OF_A_KIND].tolist() for kind, pairs in kinds.items()}


def _grid(evaluation: Evaluation, pairs: Sequence[int], captions: Sequence[str]) -> Image.Image:
    before, after = (
        [Image.fromarray(drawn.images[pair]) for pair in pairs] for drawn in (evaluation.base, evaluation.aligned)
    )
    return before_after_grid(before, after, [captions[pair] for pair in pairs])
