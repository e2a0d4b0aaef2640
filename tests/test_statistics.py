"""Paired comparison of base and aligned scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.statistics import compare_paired


def test_means_difference_and_win_rate_by_hand() -> None:
    result = compare_paired([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 5.0, 3.0], seed=0)
    assert (result.base_mean, result.aligned_mean, result.difference) == (2.5, 3.0, 0.5)
    assert result.win_rate == (2 + 0.5) / 4
    assert result.pairs == 4
    assert result.low <= result.difference <= result.high


def test_the_interval_agrees_with_the_normal_one_on_many_pairs() -> None:
    generator = np.random.default_rng(3)
    base = generator.normal(size=1000)
    aligned = base + generator.normal(0.2, 0.5, size=1000)
    result = compare_paired(base, aligned, seed=1)
    half_width = 1.96 * (aligned - base).std(ddof=1) / np.sqrt(1000)
    assert result.low == pytest.approx(result.difference - half_width, abs=0.1 * half_width)
    assert result.high == pytest.approx(result.difference + half_width, abs=0.1 * half_width)


def test_pairing_removes_the_spread_between_prompts() -> None:
    generator = np.random.default_rng(4)
    base = generator.normal(scale=100, size=256)
    result = compare_paired(base, base + generator.normal(0.5, 0.5, size=256), seed=0)
    assert 0 < result.low < 0.5 < result.high < 1


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        differences = generator.exponential(size=100) - 1
        result = compare_paired(np.zeros(100), differences, seed=trial, n_resamples=500)
        covered += result.low <= 0 <= result.high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_seed_fixes_the_interval() -> None:
    base, aligned = np.arange(20.0), np.arange(20.0)[::-1]
    assert compare_paired(base, aligned, seed=7) == compare_paired(base, aligned, seed=7)
    assert compare_paired(base, aligned, seed=7) != compare_paired(base, aligned, seed=8)


def test_groups_are_resampled_whole() -> None:
    """Copies of a pair tell nothing new: with them the interval is that of the single pairs, without it is narrower."""
    generator = np.random.default_rng(6)
    base, aligned = generator.normal(size=(2, 100))
    single = compare_paired(base, aligned, seed=0)
    copied = compare_paired(np.tile(base, 5), np.tile(aligned, 5), seed=0, groups=np.tile(np.arange(100), 5))
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high))
    believed = compare_paired(np.tile(base, 5), np.tile(aligned, 5), seed=0)
    assert believed.high - believed.low < 0.6 * (single.high - single.low)


def test_groups_of_unequal_sizes_weigh_as_much_as_they_hold() -> None:
    differences, groups = np.array([1.0, 1.0, 1.0, -1.0]), ["a", "a", "a", "b"]
    result = compare_paired(np.zeros(4), differences, seed=0, groups=[ord(name) for name in groups])
    assert result.difference == 0.5 and (result.low, result.high) == (-1, 1)


def test_one_group_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 groups"):
        compare_paired([1.0, 2.0], [2.0, 2.0], seed=0, groups=[0, 0])
    with pytest.raises(ValueError, match="2 values and 3 groups do not pair up"):
        compare_paired([1.0, 2.0], [2.0, 2.0], seed=0, groups=[0, 1, 2])


def test_equal_differences_give_an_interval_of_no_width() -> None:
    result = compare_paired([0.0, 1.0, 2.0], [0.5, 1.5, 2.5], seed=0)
    assert (result.low, result.high, result.win_rate) == (0.5, 0.5, 1.0)


@settings(max_examples=20, deadline=None)
@given(scores=st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=2, max_size=20), seed=st.integers(0, 9))
def test_swapping_base_and_aligned_mirrors_the_result(scores: list[tuple[float, float]], seed: int) -> None:
    base, aligned = zip(*scores, strict=True)
    forward = compare_paired(base, aligned, seed=seed, n_resamples=200)
    backward = compare_paired(aligned, base, seed=seed, n_resamples=200)
    assert forward.difference == pytest.approx(-backward.difference, abs=1e-9)
    assert forward.low == pytest.approx(-backward.high, abs=1e-9)
    assert forward.win_rate == pytest.approx(1 - backward.win_rate)


@pytest.mark.parametrize(
    ("base", "aligned", "message"),
    [
        ([1.0, 2.0], [1.0], "do not pair up"),
        ([1.0], [2.0], "at least 2 pairs, got 1"),
        ([1.0, float("nan")], [1.0, 2.0], "NaN or infinity"),
        ([1.0, 2.0], [1.0, float("inf")], "NaN or infinity"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(base: list[float], aligned: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_paired(base, aligned, seed=0)
