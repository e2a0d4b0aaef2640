"""Plain sampling: against a chain by hand, and pictures that form pairs."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from job_runs import REPOSITORY
from policies import make_policy
from settings import miniature_settings

from pipeline.config import RunSettings
from pipeline.generation import drift_steps, evaluation_batch, generate_latents
from pipeline.noise import EVALUATION_ITERATION, INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.scheduler import load_scheduler
from pipeline.transitions import DDIMTransition

pytest_plugins = ["model_fixtures"]

PROMPTS = ["a red circle", "a small blue star", "a large green ring"]


@pytest.fixture(scope="module")
def run_settings(miniature_model: Path) -> RunSettings:
    return miniature_settings(miniature_model)


@pytest.fixture(scope="module")
def policy(run_settings: RunSettings) -> Policy:
    return make_policy(run_settings, adapter_scale=0.2)


def test_prompts_are_drawn_round_and_round() -> None:
    batch = evaluation_batch(PROMPTS, start=2, count=5)
    assert batch.iteration == EVALUATION_ITERATION
    assert batch.samples == (2, 3, 4, 5, 6)
    assert batch.prompts == (PROMPTS[2], *PROMPTS, PROMPTS[0])


@given(st.integers(1, 1000))
def test_the_drift_is_measured_evenly_over_the_grid(num_steps: int) -> None:
    steps = drift_steps(num_steps)
    assert len(set(steps)) == min(num_steps, 5)
    before, after = steps[0], num_steps - 1 - steps[-1]
    assert abs(before - after) <= 1
    gaps = {late - early for early, late in itertools.pairwise(steps)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_of_twenty_steps_the_last_but_one_outweighs_all_others_in_the_drift() -> None:
    transition = DDIMTransition.from_scheduler(load_scheduler(str(REPOSITORY / "models" / "demo")), 20, eta=1.0)
    x_t = torch.zeros(1, 1, 1, 1)
    weights = []
    for step in range(20):
        mean, std = transition.mean_std(torch.zeros_like(x_t), x_t, step)
        moved, _ = transition.mean_std(torch.ones_like(x_t), x_t, step)
        weights.append(float((moved - mean) ** 2 / (2 * std**2)))
    *_, second, heaviest = sorted(weights)
    assert weights[18] == heaviest > 20 * second and 18 in drift_steps(20)


def test_latents_are_the_chain_of_the_transition(policy: Policy) -> None:
    batch = evaluation_batch(PROMPTS, 0, 3)
    noise = SampleNoise(5, EVALUATION_ITERATION, batch.samples)
    x_t = noise.draw((4, 8, 8), INITIAL_STEP)
    for step in range(4):
        mean, std = policy.transition.mean_std(policy.predict(x_t, step, PROMPTS), x_t, step)
        x_t = mean + std * noise.draw((4, 8, 8), step)
    found = generate_latents(policy, batch, run_seed=5)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, x_t)


def test_the_network_is_called_once_a_step(policy: Policy) -> None:
    calls: list[int] = []
    hook = policy.unet.register_forward_pre_hook(lambda _module, inputs: calls.append(len(inputs[0])))
    generate_latents(policy, evaluation_batch(PROMPTS, 0, 3), 5)
    hook.remove()
    assert calls == [6] * 4


def test_images_of_a_seed_do_not_depend_on_the_batch(policy: Policy) -> None:
    together = generate_latents(policy, evaluation_batch(PROMPTS, 0, 4), 5)
    apart = torch.cat([generate_latents(policy, evaluation_batch(PROMPTS, start, 2), 5) for start in (0, 2)])
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-3)
    assert not torch.equal(together, generate_latents(policy, evaluation_batch(PROMPTS, 0, 4), 6))


def test_base_and_aligned_images_form_pairs(policy: Policy, run_settings: RunSettings) -> None:
    batch = evaluation_batch(PROMPTS, 0, 3)
    aligned, untrained = generate_latents(policy, batch, 5), generate_latents(make_policy(run_settings), batch, 5)
    with policy.reference():
        base = generate_latents(policy, batch, 5)
    assert torch.equal(base, untrained), "the base model's images do not depend on the adapter"
    between_pairs = (aligned - base).flatten(1).norm(dim=1)
    between_others = (aligned - base.roll(1, 0)).flatten(1).norm(dim=1)
    assert (between_pairs > 0).all()
    assert (between_pairs < between_others).all(), "a pair shares its noise"
