"""Every number behind an evaluation: a row per pair of images and measure, and their means prompt by prompt."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation.diversity import pairwise_diversity
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.hacking import DIVERSITY, DRIFT
from pipeline.evaluation.image_statistics import IMAGE_STATISTICS
from pipeline.evaluation.measured import DrawnImages

KEYS = ["prompt", "kind", "measure"]


def pair_table(evaluation: Evaluation, reward_labels: Sequence[str], aspect_labels: Sequence[str]) -> pd.DataFrame:
    """Columns prompt, kind (reward, aspect or hacking), measure, sample, base and aligned, a row per pair of images.

    An aspect that the prompt leaves open has no row.
    """
    base = evaluation.base
    frames = [
        pd.DataFrame(
            {
                "prompt": base.prompts,
                "kind": kind,
                "measure": measure,
                "sample": np.arange(len(base.prompts)),
                "base": before.astype(np.float64),
                "aligned": after.astype(np.float64),
            }
        )
        for kind, measure, before, after in _columns(base, evaluation.aligned, reward_labels, aspect_labels)
    ]
    return pd.concat(frames, ignore_index=True).dropna(ignore_index=True)


def prompt_table(evaluation: Evaluation, pairs: pd.DataFrame) -> pd.DataFrame:
    """Means over the images of each prompt: columns as in `pairs` with images, difference and win_rate for sample.

    The diversity of a prompt's images, which no single pair has, is added. `win_rate` is empty for measures of hacking.
    """
    wins = (pairs.aligned > pairs.base) + 0.5 * (pairs.aligned == pairs.base)
    grouped = pairs.assign(win_rate=wins.where(pairs.kind != "hacking")).groupby(KEYS, sort=False)
    table = grouped.agg(
        images=("sample", "size"), base=("base", "mean"), aligned=("aligned", "mean"), win_rate=("win_rate", "mean")
    ).reset_index()
    table = pd.concat([table, _diversity_rows(evaluation)], ignore_index=True)
    return table.assign(difference=table.aligned - table.base)[
        [*KEYS, "images", "base", "aligned", "difference", "win_rate"]
    ]


def _columns(
    base: DrawnImages, aligned: DrawnImages, reward_labels: Sequence[str], aspect_labels: Sequence[str]
) -> Iterator[tuple[str, str, NDArray[np.float32], NDArray[np.float32]]]:
    """Kind, name, and values (N,) of both models, for everything that single images are measured by."""
    for kind, attribute, labels in (
        ("reward", "scores", reward_labels),
        ("aspect", "aspects", aspect_labels),
        ("hacking", "statistics", IMAGE_STATISTICS),
    ):
        before, after = getattr(base, attribute), getattr(aligned, attribute)
        for column, label in enumerate(labels):
            yield kind, label, before[:, column], after[:, column]
    yield "hacking", DRIFT, np.zeros_like(aligned.drift), aligned.drift


def _diversity_rows(evaluation: Evaluation) -> pd.DataFrame:
    base, aligned = evaluation.base, evaluation.aligned
    if DIVERSITY not in evaluation.hacking:
        return pd.DataFrame()
    prompts, groups, counts = np.unique(base.prompts, return_inverse=True, return_counts=True)
    values = {
        name: pairwise_diversity(drawn.embeddings, groups) for name, drawn in (("base", base), ("aligned", aligned))
    }
    rows = pd.DataFrame({"prompt": prompts, "kind": "hacking", "measure": DIVERSITY, "images": counts, **values})
    return rows.dropna(ignore_index=True)
