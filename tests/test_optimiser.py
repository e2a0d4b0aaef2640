"""AdamW on summed gradients: against torch's own on the mean, with clipping, warm-up, skips, and the moving average."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import Parameter

from pipeline.optimiser import AdapterOptimiser, NonFiniteGradientError
from pipeline.worker_settings import LearnerSettings

PAIRS = 4.0


def make_optimiser(**changes: Any) -> AdapterOptimiser:
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: Parameter(torch.randn(shape, generator=generator)) for name, shape in (("a", (3, 2)), ("b", (5,)))
    }
    return AdapterOptimiser(parameters, LearnerSettings(**changes), 0.01)


def gradients(seed: int, scale: float = 1.0) -> list[Tensor]:
    """A gradient for each parameter, averaged over pairs."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in ((3, 2), (5,))]


def step(optimiser: AdapterOptimiser, means: list[Tensor], pairs: float = PAIRS) -> tuple[Tensor, float]:
    for parameter, mean in zip(optimiser.parameters.values(), means, strict=True):
        parameter.grad = pairs * mean
    return optimiser.step(torch.tensor([pairs, 10.0]))


def values(optimiser: AdapterOptimiser) -> list[Tensor]:
    return [value.detach().clone() for value in optimiser.parameters.values()]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


@given(scale=st.floats(0.01, 100), max_grad_norm=st.floats(0.1, 10), pairs=st.integers(1, 64))
@settings(max_examples=25, deadline=None)
def test_a_step_is_torchs_clipped_adamw_on_the_mean_gradient(scale: float, max_grad_norm: float, pairs: int) -> None:
    optimiser = make_optimiser(max_grad_norm=max_grad_norm, weight_decay=0.1, betas=(0.8, 0.95), epsilon=1e-6)
    expected = [Parameter(value) for value in values(optimiser)]
    adamw = torch.optim.AdamW(expected, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for seed in range(3):
        sums, norm = step(optimiser, gradients(seed, scale), pairs)
        for parameter, gradient in zip(expected, gradients(seed, scale), strict=True):
            parameter.grad = gradient.clone()
        expected_norm = torch.nn.utils.clip_grad_norm_(expected, max_grad_norm)
        adamw.step()
        assert norm == pytest.approx(expected_norm.item(), rel=1e-4), "the norm before clipping"
        assert sums.tolist() == [pairs, 10.0]
    for found, wanted in zip(values(optimiser), expected, strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)
    assert all(value.grad is None for value in optimiser.parameters.values())
    assert (optimiser.steps_taken, optimiser.steps_skipped) == (3, 0)


def test_the_learning_rate_warms_up_in_equal_steps() -> None:
    optimiser = make_optimiser(warmup_steps=4, weight_decay=0.0, max_grad_norm=1e9)
    rates, moves = [], []
    for _ in range(6):
        before = values(optimiser)
        rates.append(optimiser.learning_rate)
        step(optimiser, gradients(0))  # under equal gradients every element moves by the learning rate
        moves.append((values(optimiser)[0] - before[0]).abs().mean().item())
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    assert moves == pytest.approx(rates, rel=1e-3)


def test_without_warm_up_the_rate_is_whole_at_once() -> None:
    assert make_optimiser(warmup_steps=0).learning_rate == 0.01


def test_a_step_without_pairs_changes_nothing() -> None:
    optimiser = make_optimiser()
    before = values(optimiser)
    _, norm = optimiser.step(torch.tensor([0.0, 0.0]))
    assert math.isnan(norm)
    assert_equal(values(optimiser), before)
    assert (optimiser.steps_taken, optimiser.steps_skipped) == (0, 0)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_is_skipped_and_forgotten(poison: float) -> None:
    optimiser, clean = make_optimiser(), make_optimiser()
    step(optimiser, gradients(0))
    step(clean, gradients(0))
    poisoned = gradients(1)
    poisoned[1][2] = poison
    step(optimiser, poisoned)
    assert_equal(values(optimiser), values(clean))
    assert (optimiser.steps_taken, optimiser.steps_skipped) == (1, 1)
    step(optimiser, gradients(2))
    step(clean, gradients(2))
    assert_equal(values(optimiser), values(clean))


def test_too_many_skips_stop_the_run() -> None:
    optimiser = make_optimiser(max_skipped_steps=2)
    poisoned = gradients(0, float("nan"))
    step(optimiser, poisoned)
    step(optimiser, gradients(0))
    step(optimiser, poisoned)
    with pytest.raises(
        NonFiniteGradientError, match=r"3 optimiser steps .*max_skipped_steps=2; lower learner.learning_rate"
    ):
        step(optimiser, poisoned)


def test_the_average_is_exponential() -> None:
    optimiser, decay = make_optimiser(ema_decay=0.7), 0.7
    history = [values(optimiser)]
    for seed in range(4):
        step(optimiser, gradients(seed))
        history.append(values(optimiser))
    weights = [decay**4, *((1 - decay) * decay**age for age in (3, 2, 1, 0))]
    assert sum(weights) == pytest.approx(1)
    assert optimiser.average is not None
    for place, found in enumerate(optimiser.average.values()):
        expected = sum(weight * moment[place] for weight, moment in zip(weights, history, strict=True))
        torch.testing.assert_close(found, expected)
    step(optimiser, gradients(0, float("nan")))
    torch.testing.assert_close(list(optimiser.average.values())[1], expected)


def test_no_average_is_kept_unless_asked_for() -> None:
    optimiser = make_optimiser()
    step(optimiser, gradients(0))
    assert optimiser.average is None
    assert not any(name.startswith("average.") for name in optimiser.state())


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_restored_optimiser_continues_to_the_last_bit(steps_before: int) -> None:
    settings = {"ema_decay": 0.9, "warmup_steps": 5}
    source, target = make_optimiser(**settings), make_optimiser(**settings)
    for seed in range(steps_before):
        step(source, gradients(seed))
    state = source.state()
    for seed in range(10, 12):  # a past of its own, to be forgotten
        step(target, gradients(seed))
    target.load_state(state)
    assert target.state().keys() == state.keys()
    for seed in range(20, 23):
        step(source, gradients(seed))
        step(target, gradients(seed))
    assert source.state().keys() == target.state().keys()
    for name, value in source.state().items():
        assert torch.equal(value, target.state()[name]), name


def test_a_taken_state_does_not_change_with_the_optimiser() -> None:
    optimiser = make_optimiser(ema_decay=0.9)
    step(optimiser, gradients(0))
    state = optimiser.state()
    kept = {name: value.clone() for name, value in state.items()}
    step(optimiser, gradients(1))
    assert all(torch.equal(value, kept[name]) for name, value in state.items())


def test_a_state_can_be_saved_whatever_the_memory_format_of_the_weights() -> None:
    weight = Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    optimiser = AdapterOptimiser({"conv.lora_A.weight": weight}, LearnerSettings(), 1e-3)
    weight.grad = torch.ones_like(weight)
    optimiser.step(torch.tensor([1.0]))
    assert torch.equal(load(save(optimiser.state()))["adapter.conv.lora_A.weight"], weight.detach())
