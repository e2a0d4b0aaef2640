"""Noise belongs to the sample: the same numbers in any company, other numbers for any other coordinate."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from pipeline.noise import EVALUATION_ITERATION, INITIAL_STEP, SampleNoise

SHAPE = (4, 3, 2)

COORDINATES = st.tuples(
    st.integers(0, 2**40),
    st.integers(EVALUATION_ITERATION, 10**6),
    st.integers(0, 10**7),
    st.integers(INITIAL_STEP, 1000),
    st.integers(0, 3),
)


def draw_one(run_seed: int, iteration: int, sample: int, step: int, draw: int) -> torch.Tensor:
    return SampleNoise(run_seed, iteration, [sample]).draw(SHAPE, step, draw)[0]


@given(samples=st.lists(st.integers(0, 10**6), min_size=1, max_size=6), step=st.integers(INITIAL_STEP, 50))
@settings(max_examples=25, deadline=None)
def test_a_sample_draws_the_same_in_any_batch(samples: list[int], step: int) -> None:
    together = SampleNoise(3, 1, samples).draw(SHAPE, step, 1)
    assert together.shape == (len(samples), *SHAPE)
    assert together.dtype == torch.float32
    for sample, row in zip(samples, together, strict=True):
        assert torch.equal(row, draw_one(3, 1, sample, step, 1))


@given(first=COORDINATES, second=COORDINATES)
@settings(max_examples=100, deadline=None)
def test_other_coordinates_draw_other_numbers(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    assert torch.equal(draw_one(*first), draw_one(*second)) == (first == second)


def test_neighbours_in_every_coordinate_are_independent() -> None:
    base = (5, 2, 7, 3, 1)
    neighbours = [tuple(value + (place == axis) for place, value in enumerate(base)) for axis in range(5)]
    draws = [
        SampleNoise(*place[:2], [place[2]]).draw((4, 64, 64), *place[3:]).flatten() for place in [base, *neighbours]
    ]
    correlations = torch.corrcoef(torch.stack(draws)).fill_diagonal_(0)
    assert correlations.abs().max() < 5 / 128  # five standard errors of the correlation of 128 * 128 numbers


def test_draws_are_standard_normal() -> None:
    noise = SampleNoise(0, 0, range(64)).draw((4, 16, 16), INITIAL_STEP).flatten()
    assert kstest(noise.numpy(), "norm").pvalue > 1e-3


def test_order_of_drawing_does_not_matter() -> None:
    noise = SampleNoise(0, 0, [0, 1])
    forwards = [noise.draw(SHAPE, step) for step in range(4)]
    backwards = [noise.draw(SHAPE, step) for step in reversed(range(4))][::-1]
    assert all(torch.equal(one, other) for one, other in zip(forwards, backwards, strict=True))
    assert not any(torch.equal(one, other) for one, other in pairwise(forwards))


def test_evaluation_has_noise_of_its_own() -> None:
    assert not torch.equal(draw_one(0, EVALUATION_ITERATION, 0, 0, 0), draw_one(0, 0, 0, 0, 0))
