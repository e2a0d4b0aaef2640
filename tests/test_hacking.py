"""Diversity, the base model's own spread, and which measures count as moved."""

import numpy as np
import pytest
from drawn import drawn_images

from pipeline.evaluation.diversity import pairwise_diversity
from pipeline.evaluation.hacking import compare_hacking, verdict
from pipeline.evaluation.image_statistics import IMAGE_STATISTICS
from pipeline.evaluation.spread import redraw_spread

SATURATION = IMAGE_STATISTICS.index("saturation")
PROMPTS = [f"prompt {number}" for number in range(40)] * 3
GROUPS = np.arange(len(PROMPTS)) % 40


def with_saturation(values: np.ndarray) -> np.ndarray:
    statistics = np.zeros((len(values), len(IMAGE_STATISTICS)))
    statistics[:, SATURATION] = values
    return statistics


def test_diversity_is_the_mean_distance_of_all_pairs() -> None:
    angles = np.radians([0, 60, 90, 0, 0, 30])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = pairwise_diversity(embeddings, np.array([0, 0, 0, 1, 1, 2]))
    three = 1 - (np.cos(np.radians(60)) + np.cos(np.radians(90)) + np.cos(np.radians(30))) / 3
    assert found[:2] == pytest.approx([three, 0], abs=1e-12)
    assert np.isnan(found[2])


def test_the_spread_is_that_of_two_draws_of_the_same_prompts() -> None:
    # Within each prompt the variance is 2, whatever lies between the prompts.
    values = np.array([0.0, 2.0, 100.0, 102.0])
    assert redraw_spread(values, np.array([0, 0, 1, 1])) == pytest.approx(1.959964 * np.sqrt(2 * 2 / 4))
    assert redraw_spread(values, np.arange(4)) is None, "noise and prompts cannot be told apart"
    assert redraw_spread(values, np.array([0, 0, 1, 2])) is None, "a single prompt would decide"


def test_the_spread_is_exceeded_once_in_twenty_draws() -> None:
    generator = np.random.default_rng(0)
    means, exceeded = generator.normal(size=40)[GROUPS], 0
    for _ in range(400):
        first, second = (means + generator.exponential(size=len(GROUPS)) for _ in range(2))
        exceeded += abs(second.mean() - first.mean()) > redraw_spread(first, GROUPS)
    assert 0.02 <= exceeded / 400 <= 0.08


def test_a_change_must_be_sure_and_larger_than_the_spread() -> None:
    generator = np.random.default_rng(1)
    base = 0.5 + 0.1 * generator.normal(size=len(PROMPTS))
    small = compare(base, base + 0.001)["saturation"]
    assert small.low > 0 and small.spread > 0.001 and not small.moved, "sure, as noise is shared, but invisible"
    large = compare(base, base + 0.1)["saturation"]
    assert large.moved and large.aligned - large.base == pytest.approx(0.1, abs=1e-6)
    wild = compare(base, base + generator.normal(0.02, 1.0, size=len(PROMPTS)))["saturation"]
    assert wild.low < 0 < wild.high and not wild.moved, "large, but unsure"


def compare(base: np.ndarray, aligned: np.ndarray):
    scores = np.zeros(len(PROMPTS))
    return compare_hacking(
        drawn_images(scores, PROMPTS, with_saturation(base)), drawn_images(scores, PROMPTS, with_saturation(aligned)), 0
    )


def test_a_collapse_to_one_picture_is_lost_diversity() -> None:
    generator = np.random.default_rng(2)
    embeddings = generator.normal(size=(len(PROMPTS), 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    collapsed = embeddings[GROUPS]
    scores = np.zeros(len(PROMPTS))
    drift = np.full(len(PROMPTS), 0.25)
    measures = compare_hacking(
        drawn_images(scores, PROMPTS, embeddings=embeddings),
        drawn_images(scores, PROMPTS, embeddings=collapsed, drift=drift),
        seed=0,
    )
    row = measures["diversity"]
    assert row.moved and row.aligned == pytest.approx(0, abs=1e-6) and row.base > 0.8
    assert (measures["drift"].base, measures["drift"].aligned, measures["drift"].moved) == (0.0, 0.25, None)
    told = verdict(measures)
    assert told.startswith("Moved beyond the base model's own spread: diversity (") and "Drift 0.25." in told
    assert "saturation" not in told and "\n" not in told


def test_nothing_moves_where_nothing_changes() -> None:
    scores = np.zeros(4)
    drawn = drawn_images(scores, ["a", "b"] * 2)
    told = verdict(compare_hacking(drawn, drawn, 0))
    assert told.startswith("No measure moved") and "Diversity was not measured" in told


def test_one_image_a_prompt_gives_no_diversity_and_no_verdict() -> None:
    drawn = drawn_images(np.zeros(3), ["a", "b", "c"], embeddings=np.eye(3))
    measures = compare_hacking(drawn, drawn, 0)
    assert "diversity" not in measures
    assert {row.moved for row in measures.values()} == {None}
    assert verdict(measures).startswith("Whether a measure moved beyond the base model's own spread takes two images")
