"""Gradient guidance: its schedule, the gradient it follows, and which moves it keeps."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import load_scorer
from policies import make_policy
from scorers import ConstantScorer, MisleadingScorer, ProjectionScorer
from settings import miniature_settings
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.guidance import GuidedWinner, guidance_schedule, guide_winner
from pipeline.policy import Policy
from pipeline.scoring import AsyncScorer, InProcessScorer

pytest_plugins = ["model_fixtures"]

PROMPTS = ["a red circle", "a small blue star", "a large green ring", "a purple cross"]
STEP = 2
STD = torch.tensor(0.4)


@pytest.fixture(scope="module")
def run_settings(miniature_model: Path, miniature_clip: Path) -> RunSettings:
    return miniature_settings(miniature_model, reward={"name": "clip", "path": str(miniature_clip)})


@pytest.fixture(scope="module")
def policy(run_settings: RunSettings) -> Policy:
    policy = make_policy(run_settings, adapter_scale=0.2)
    policy.freeze()
    return policy


@pytest.fixture(scope="module")
def winner() -> Tensor:
    """(4, 4, 8, 8)."""
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def step_wise_rewards(policy: Policy, scorer: AsyncScorer, x_s: Tensor) -> Tensor:
    x0 = policy.transition.predict_x0(policy.predict(x_s, STEP, PROMPTS), x_s, STEP)
    return asyncio.run(scorer.score(x0, PROMPTS, policy.transition.timestep(STEP)))


def guide(policy: Policy, scorer: AsyncScorer, winner: Tensor, **changes: Any) -> GuidedWinner:
    options = {"strength": 0.15, "delta": 0.5, "reward_scale": 1.0} | changes
    output = policy.predict(winner, STEP, PROMPTS)
    scores = options.pop("winner_scores", None)
    if scores is None:
        scores = step_wise_rewards(policy, scorer, winner)
    return asyncio.run(guide_winner(policy, scorer, winner, output, scores, PROMPTS, STEP, STD, **options))


class PraisingScorer(InProcessScorer):
    """Finds whatever it is asked to score much better than what it gave a gradient for."""

    async def score(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        return await super().score(latents, prompts, timestep) + 1000


def test_the_schedule_of_five_steps() -> None:
    schedule = guidance_schedule(5, 0.1, 0.2)
    assert schedule.dtype == torch.float32
    expected = [0.1, 0.1 + 0.05 * (1 - math.sqrt(0.5)), 0.15, 0.1 + 0.05 * (1 + math.sqrt(0.5)), 0.2]
    assert schedule.tolist() == pytest.approx(expected, abs=1e-7)


@given(steps=st.integers(1, 100), low=st.floats(0.01, 1), rise=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_schedule_rises_from_minimum_to_maximum(steps: int, low: float, rise: float) -> None:
    schedule = guidance_schedule(steps, low, low + rise)
    assert schedule.shape == (steps,)
    assert schedule[0].item() == pytest.approx(low, rel=1e-6)
    if steps > 1:
        assert schedule[-1].item() == pytest.approx(low + rise, rel=1e-6)
        assert (schedule.diff() >= 0).all()
        torch.testing.assert_close(schedule + schedule.flip(0), torch.full((steps,), 2 * low + rise))


@pytest.mark.parametrize("reward_scale", [1.0, 0.25])
def test_the_move_is_the_gradient_of_the_whole_graph(
    policy: Policy, run_settings: RunSettings, winner: Tensor, reward_scale: float
) -> None:
    scorer = load_scorer(run_settings)
    found = guide(policy, PraisingScorer(scorer.scorer), winner, reward_scale=reward_scale)
    assert found.accepted.all()

    # Eq. 13 in one graph: decode, x0, classifier-free guidance and network, with r_high a constant.
    x_s = winner.clone().requires_grad_()
    x0 = policy.transition.predict_x0(policy.forward(x_s, STEP, PROMPTS), x_s, STEP)
    images = scorer.scorer.decoder.decode(x0)
    rewards = scorer.scorer.reward.score(images, PROMPTS) / reward_scale
    target = rewards.detach() + 0.5
    (gradient,) = torch.autograd.grad(((target - rewards) ** 2).sum(), x_s)
    expected = winner - 0.15 * gradient
    moved = (expected - winner).abs().max().item()
    assert moved > 1e-4, "with a gradient through r_high the move would vanish"
    torch.testing.assert_close(found.latents, expected, rtol=0, atol=1e-4 * moved + 1e-6)
    distances = (expected - winner).flatten(1).norm(dim=1) / (STD * math.sqrt(4 * 8 * 8))
    torch.testing.assert_close(found.move, distances, rtol=1e-3, atol=1e-7)


def test_the_move_is_linear_in_strength_and_margin_and_goes_with_the_inverse_scale(
    policy: Policy, winner: Tensor
) -> None:
    base = guide(policy, ProjectionScorer(), winner).move
    for change, factor in (({"strength": 0.3}, 2), ({"delta": 1.5}, 3), ({"reward_scale": 4.0}, 0.25)):
        torch.testing.assert_close(
            guide(policy, ProjectionScorer(), winner, **change).move, factor * base, rtol=1e-3, atol=0
        )


def test_moves_that_help_are_kept_and_others_undone(policy: Policy, winner: Tensor) -> None:
    misled = [False, True, True, False]
    before = step_wise_rewards(policy, ProjectionScorer(), winner)
    found = guide(policy, MisleadingScorer(misled), winner)
    assert found.accepted.tolist() == [not wrong for wrong in misled]
    assert (found.move > 0).all(), "what was proposed is reported, accepted or not"
    output = policy.predict(winner, STEP, PROMPTS)
    for row, wrong in enumerate(misled):
        if wrong:
            assert torch.equal(found.latents[row], winner[row])
            assert torch.equal(found.model_output[row], output[row])
            assert found.scores[row] == before[row]
        else:
            assert (found.latents[row] - winner[row]).abs().max() > 0
            assert found.scores[row] > before[row]


def test_output_and_score_belong_to_the_latents_that_are_kept(policy: Policy, winner: Tensor) -> None:
    found = guide(policy, MisleadingScorer([False, True, False, True]), winner)
    torch.testing.assert_close(found.model_output, policy.predict(found.latents, STEP, PROMPTS), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.scores, step_wise_rewards(policy, ProjectionScorer(), found.latents), rtol=0, atol=1e-5
    )


class OverflowingScorer(ProjectionScorer):
    """Gives the second sample a gradient as a backward pass in half precision may."""

    async def score_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int
    ) -> tuple[Tensor, Tensor]:
        scores, gradients = await super().score_with_gradient(latents, prompts, timestep)
        gradients[1, 0, 0, 0] = math.inf
        return scores, gradients


def test_a_gradient_that_overflows_leaves_its_winner_alone(policy: Policy, winner: Tensor) -> None:
    found = guide(policy, OverflowingScorer(), winner)
    assert found.accepted.tolist() == [True, False, True, True]
    assert found.latents.isfinite().all() and found.scores.isfinite().all()
    assert torch.equal(found.latents[1], winner[1]) and found.move[1] == 0


def test_a_move_at_which_the_network_overflows_leaves_its_winner_alone(policy: Policy, winner: Tensor) -> None:
    found = guide(policy, ProjectionScorer(), winner, delta=1e30)
    assert not found.accepted.any() and not found.move.any()
    assert torch.equal(found.latents, winner)
    assert found.model_output.isfinite().all() and found.scores.isfinite().all()


def test_a_move_that_changes_nothing_is_not_accepted(policy: Policy, winner: Tensor) -> None:
    found = guide(policy, ConstantScorer(), winner)
    assert not found.accepted.any()
    assert torch.equal(found.latents, winner)
    assert not found.move.any()


def test_nothing_of_the_caller_changes(policy: Policy, winner: Tensor) -> None:
    before = winner.clone()
    found = guide(policy, ProjectionScorer(), winner)
    assert torch.equal(winner, before)
    assert not winner.requires_grad
    assert not found.latents.requires_grad
    assert not found.model_output.requires_grad
    assert all(value.grad is None for value in policy.unet.parameters())


def test_a_learning_policy_gathers_no_gradients_from_guidance(run_settings: RunSettings, winner: Tensor) -> None:
    learning = make_policy(run_settings, adapter_scale=0.2)
    guide(learning, ProjectionScorer(), winner)
    assert all(value.grad is None for value in learning.adapter_parameters().values())
