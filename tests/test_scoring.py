"""Scores and gradients of latents, chunk by chunk, and rewards that break their promise."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Sequence
from math import isfinite
from typing import ClassVar, Self

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.decoder import LatentDecoder
from pipeline.rewards.base import Reward, StepAwareReward
from pipeline.rewards.jpeg import JpegCompressibility
from pipeline.scoring import (
    InProcessScorer,
    LatentScorer,
    NonFiniteScoreError,
    RewardError,
    check_gradients,
    check_scores,
)

CPU = torch.device("cpu")


class Redness(Reward):
    """Mean squared red, times the length of the prompt: depends on the image, the prompt and nothing else."""

    name: ClassVar[str] = "redness"
    differentiable: ClassVar[bool] = True
    needs_path: ClassVar[bool] = False
    licence: ClassVar[str] = "none"

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        return cls()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return images[:, 0].square().mean(dim=(1, 2)) * lengths


class Broken(Redness):
    """Redness with ``damage`` done to its scores."""

    name: ClassVar[str] = "broken"

    def __init__(self, damage: Callable[[Tensor], Tensor]) -> None:
        self.damage = damage

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.damage(super().score(images, prompts))


class LateRedness(StepAwareReward):
    """Redness, times the diffusion time: depends on the time and is 0 for finished images."""

    name: ClassVar[str] = "late_redness"
    differentiable: ClassVar[bool] = True
    needs_path: ClassVar[bool] = False
    licence: ClassVar[str] = "none"

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        return cls()

    def score_at(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        assert timesteps.shape == (len(prompts),) and timesteps.dtype == torch.int64
        return Redness().score(images, prompts) * timesteps


@pytest.fixture(scope="module")
def decoder() -> LatentDecoder:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4)
    return LatentDecoder(vae, chunk_size=2)


def random_latents(batch: int) -> Tensor:
    """(B, 4, 8, 8)."""
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(11)) * 0.1


TIME = 301
PROMPTS = ["fox", "a blue cat", "ant", "a red car", "bee"]


def test_scores_are_those_of_the_decoded_images(decoder: LatentDecoder) -> None:
    latents = random_latents(5)
    scores = LatentScorer(decoder, Redness()).score(latents, PROMPTS, TIME)
    assert scores.dtype == torch.float32
    assert scores.device == CPU
    assert not scores.requires_grad
    torch.testing.assert_close(scores, Redness().score(decoder.decode(latents), PROMPTS))


def test_a_step_aware_reward_gets_the_time_and_others_ignore_it(decoder: LatentDecoder) -> None:
    latents = random_latents(5)
    plain, aware = LatentScorer(decoder, Redness()), LatentScorer(decoder, LateRedness())
    scores, gradients = plain.score_with_gradient(latents, PROMPTS, TIME)
    assert torch.equal(plain.score(latents, PROMPTS, 0), plain.score(latents, PROMPTS, TIME))
    torch.testing.assert_close(aware.score(latents, PROMPTS, TIME), TIME * scores)
    aware_scores, aware_gradients = aware.score_with_gradient(latents, PROMPTS, TIME)
    torch.testing.assert_close(aware_scores, TIME * scores)
    torch.testing.assert_close(aware_gradients, TIME * gradients, rtol=1e-3, atol=1e-3)
    assert gradients.abs().max() * TIME > 1


def test_finished_images_have_time_zero(decoder: LatentDecoder) -> None:
    images = decoder.decode(random_latents(3))
    assert torch.equal(LateRedness().score(images, PROMPTS[:3]), torch.zeros(3))


def test_a_reward_without_gradient_ranks_and_refuses_to_guide(decoder: LatentDecoder) -> None:
    scorer = LatentScorer(decoder, JpegCompressibility(CPU))
    assert (scorer.score(random_latents(3), PROMPTS[:3], TIME) < 0).all()
    with pytest.raises(ValueError, match="'jpeg_compressibility' is not differentiable"):
        scorer.score_with_gradient(random_latents(3), PROMPTS[:3], TIME)


def test_chunked_gradients_equal_those_of_the_whole_batch(decoder: LatentDecoder) -> None:
    latents = random_latents(5)
    scores, gradients = LatentScorer(decoder, Redness()).score_with_gradient(latents, PROMPTS, TIME)
    leaf = latents.clone().requires_grad_()
    whole = Redness().score(decoder.decode(leaf), PROMPTS)
    (expected,) = torch.autograd.grad(whole.sum(), leaf)
    assert (scores.dtype, gradients.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(scores, whole.detach())
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    assert (gradients.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("size", [2.0**-40, 2.0**40])
def test_a_decoder_in_half_precision_passes_gradients_of_any_size(decoder: LatentDecoder, size: float) -> None:
    """A small reward, or one of many pixels, has gradients below 6e-8, the smallest number of half precision."""

    class Scaled(Redness):
        def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            return super().score(images, prompts) * size

    half = LatentDecoder(copy.deepcopy(decoder.vae).half(), chunk_size=2)
    _, expected = LatentScorer(half, Redness()).score_with_gradient(random_latents(5), PROMPTS, TIME)
    _, found = LatentScorer(half, Scaled()).score_with_gradient(random_latents(5), PROMPTS, TIME)
    assert torch.equal(found, expected * size)
    _, precise = LatentScorer(decoder, Redness()).score_with_gradient(random_latents(5), PROMPTS, TIME)
    assert torch.cosine_similarity(expected.flatten(1), precise.flatten(1)).min() > 0.99


def test_a_step_along_the_gradient_raises_every_score(decoder: LatentDecoder) -> None:
    scorer = LatentScorer(decoder, Redness())
    latents = random_latents(5)
    scores, gradients = scorer.score_with_gradient(latents, PROMPTS, TIME)
    length = gradients.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (scorer.score(latents + 0.01 * gradients / length, PROMPTS, TIME) > scores).all()


def test_each_graph_is_freed_before_the_next_chunk(decoder: LatentDecoder) -> None:
    alive: list[int] = []
    graphs = 0

    class Counting(Redness):
        def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            nonlocal graphs
            graphs += 1
            alive.append(graphs)
            scores = super().score(images, prompts)
            marker = Released(lambda: release())
            scores.grad_fn.metadata["marker"] = marker
            return scores

    def release() -> None:
        nonlocal graphs
        graphs -= 1

    LatentScorer(decoder, Counting()).score_with_gradient(random_latents(5), PROMPTS, TIME)
    assert alive == [1, 1, 1]
    assert graphs == 0
    LatentScorer(LatentDecoder(decoder.vae, 2, 1), Counting()).score_with_gradient(random_latents(5), PROMPTS, TIME)
    assert alive == [1] * 8


class Released:
    """Calls back when the graph that holds it is gone."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback

    def __del__(self) -> None:
        self.callback()


def test_gradients_are_made_inside_no_grad_and_leave_the_caller_untouched(decoder: LatentDecoder) -> None:
    latents = random_latents(3).requires_grad_()
    with torch.no_grad():
        _, gradients = LatentScorer(decoder, Redness()).score_with_gradient(latents, PROMPTS[:3], TIME)
        assert not torch.is_grad_enabled()
    assert gradients.any()
    assert latents.grad is None


def test_the_async_scorer_gives_the_same(decoder: LatentDecoder) -> None:
    scorer = LatentScorer(decoder, Redness())
    latents = random_latents(3)

    async def both() -> tuple[Tensor, tuple[Tensor, Tensor]]:
        wrapped = InProcessScorer(scorer)
        results = await asyncio.gather(
            wrapped.score(latents, PROMPTS[:3], TIME), wrapped.score_with_gradient(latents, PROMPTS[:3], TIME)
        )
        assert torch.is_grad_enabled(), "no grad mode may leak out of an await"
        return results

    scores, (guided_scores, gradients) = asyncio.run(both())
    expected_scores, expected_gradients = scorer.score_with_gradient(latents, PROMPTS[:3], TIME)
    assert torch.equal(scores, guided_scores)
    assert torch.equal(guided_scores, expected_scores)
    assert torch.equal(gradients, expected_gradients)


def poison(value: float, index: int) -> Callable[[Tensor], Tensor]:
    """Replace the score at ``index`` of every chunk that has it by ``value``."""

    def damage(scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[index:] = value
        return scores

    return damage


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", ["score", "score_with_gradient"])
def test_a_poisoned_score_stops_with_the_reward_and_the_prompt(
    decoder: LatentDecoder, value: float, method: str
) -> None:
    scorer = LatentScorer(decoder, Broken(poison(value, index=1)))
    with pytest.raises(RewardError, match=rf"'broken' returned {value} for the prompt 'a blue cat'"):
        getattr(scorer, method)(random_latents(5), PROMPTS, TIME)


@pytest.mark.parametrize("method", ["score", "score_with_gradient"])
def test_an_image_with_nan_pixels_stops_with_the_reward_and_the_prompt(decoder: LatentDecoder, method: str) -> None:
    latents = random_latents(5)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(
        NonFiniteScoreError, match="'broken' cannot score the image decoded for the prompt 'a blue cat'"
    ):
        getattr(LatentScorer(decoder, Broken(torch.nan_to_num)), method)(latents, PROMPTS, TIME)


@pytest.mark.parametrize("damage", [lambda s: s[:, None], lambda s: s.mean(), lambda s: s[:-1]])
@pytest.mark.parametrize("method", ["score", "score_with_gradient"])
def test_a_wrong_shape_stops_with_the_reward_and_the_prompt(
    decoder: LatentDecoder, damage: Callable[[Tensor], Tensor], method: str
) -> None:
    scorer = LatentScorer(decoder, Broken(damage))
    with pytest.raises(RewardError, match=r"'broken' returned the shape .* instead of \(2,\) .*'fox'"):
        getattr(scorer, method)(random_latents(5), PROMPTS, TIME)


def test_a_gradient_that_is_not_finite_stops(decoder: LatentDecoder) -> None:
    scorer = LatentScorer(decoder, Broken(lambda scores: (scores - scores.detach()).sqrt()))
    with pytest.raises(RewardError, match="'broken' has a gradient that is not finite for the prompt 'fox'"):
        scorer.score_with_gradient(random_latents(3), PROMPTS[:3], TIME)


def test_a_sample_whose_gradient_is_not_finite_is_told_of_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    gradients = torch.ones(3, 4, 8, 8)
    gradients[1, 2, 3, 4] = torch.inf
    assert torch.equal(check_gradients(gradients, PROMPTS[:3], "any"), gradients)
    (record,) = caplog.records
    assert "of 1 of 3 samples are not finite" in record.message and record.message.endswith(repr(PROMPTS[1]))


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=6))
def test_check_scores_passes_finite_numbers_alone(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    prompts = [f"prompt {index}" for index in range(len(values))]
    bad = [index for index, value in enumerate(values) if not isfinite(value)]
    if bad:
        with pytest.raises(RewardError, match=f"'prompt {bad[0]}'"):
            check_scores(scores, prompts, "any")
    else:
        assert torch.equal(check_scores(scores, prompts, "any"), scores)


def test_a_reward_error_survives_the_trip_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RewardError("reward 'x' returned nan for the prompt 'y'")))
    assert str(error) == "reward 'x' returned nan for the prompt 'y'"
