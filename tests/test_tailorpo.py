"""The TailorPO loss: its closed form, its gradient (the paper's Eq. 11), and its optional clamp."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from pipeline.methods.tailorpo import log_ratio, preference_margin, tailorpo_loss
from pipeline.transitions import Reduction, gaussian_log_prob

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
REDUCTIONS = st.sampled_from(["mean", "sum"])


def pair(shape: tuple[int, ...], std: float, shift: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Policy mean, reference mean, winner and loser, all (B, C, H, W): `shift` moves the policy, in units of std."""
    generator = torch.Generator().manual_seed(seed)
    reference, direction, winner_noise, loser_noise = (torch.randn(shape, generator=generator) for _ in range(4))
    policy = reference + shift * std * direction
    return policy, reference, policy + std * winner_noise, policy + std * loser_noise


def two_forward_loss(
    policy: Tensor, reference: Tensor, winner: Tensor, loser: Tensor, std: Tensor, beta: float, reduction: Reduction
) -> Tensor:
    """Eq. 10 as it is written, in float64: four log-probabilities of two Gaussians."""
    spread = std.double().reshape(-1, *[1] * (policy.dim() - 1)) if std.dim() else std.double()

    def log_prob(sample: Tensor, mean: Tensor) -> Tensor:
        density = Normal(mean, spread).log_prob(sample.double()).flatten(1)
        return density.mean(1) if reduction == "mean" else density.sum(1)

    ratios = [log_prob(sample, policy) - log_prob(sample, reference.double()) for sample in (winner, loser)]
    return -torch.nn.functional.logsigmoid(beta * (ratios[0] - ratios[1]))


@given(
    shape=SHAPES,
    std=st.floats(0.02, 1.0),
    shift=st.floats(0, 1),
    beta=st.floats(0.01, 5),
    reduction=REDUCTIONS,
    per_sample=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_the_closed_form_is_the_difference_of_four_log_probabilities(
    shape: tuple[int, ...],
    std: float,
    shift: float,
    beta: float,
    reduction: Reduction,
    per_sample: bool,
    seed: int,
) -> None:
    policy, reference, winner, loser = pair(shape, std, shift, seed)
    deviation = torch.linspace(std, 2 * std, shape[0]) if per_sample else torch.tensor(std)
    policy = policy.requires_grad_()
    loss = tailorpo_loss(policy, reference, winner, loser, deviation, beta, reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    exact_policy = policy.detach().double().requires_grad_()
    exact = two_forward_loss(exact_policy, reference, winner, loser, deviation, beta, reduction)
    (exact_gradient,) = torch.autograd.grad(exact.sum(), exact_policy)
    assert loss.shape == (shape[0],)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)
    scale = exact_gradient.abs().max().item() + 1e-12
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=0, atol=1e-3 * scale)


def test_a_deviation_of_each_sample_may_have_the_axes_of_a_latent() -> None:
    policy, reference, winner, loser = pair((3, 2, 4, 4), 0.5, 0.1, seed=0)
    deviation = torch.tensor([0.3, 0.4, 0.5])
    losses = [
        tailorpo_loss(policy, reference, winner, loser, std, ratio_clip=clip)
        for std in (deviation, deviation[:, None, None, None])
        for clip in (None, 0.2)
    ]
    torch.testing.assert_close(losses[0], losses[2], rtol=0, atol=0)
    torch.testing.assert_close(losses[1], losses[3], rtol=0, atol=0)


@given(shape=SHAPES, std=st.floats(0.1, 1.0), reduction=REDUCTIONS, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_margin_and_ratios_agree_with_the_log_probabilities_of_the_pipeline(
    shape: tuple[int, ...], std: float, reduction: Reduction, seed: int
) -> None:
    policy, reference, winner, loser = pair(shape, std, 0.5, seed)
    deviation = torch.tensor(std)
    expected = [
        gaussian_log_prob(sample, policy, std, reduction) - gaussian_log_prob(sample, reference, std, reduction)
        for sample in (winner, loser)
    ]
    found = [log_ratio(policy, reference, sample, deviation, reduction) for sample in (winner, loser)]
    margin = preference_margin(policy, reference, winner, loser, deviation, reduction)
    tolerance = 1e-4 * policy[0].numel()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=tolerance)
    torch.testing.assert_close(margin, expected[0] - expected[1], rtol=1e-3, atol=tolerance)


@given(shape=SHAPES, std=st.floats(0.02, 1), beta=st.floats(0.01, 5), reduction=REDUCTIONS, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_at_the_reference_it_is_ln_2_and_its_gradient_is_equation_11(
    shape: tuple[int, ...], std: float, beta: float, reduction: Reduction, seed: int
) -> None:
    mean, _, winner, loser = pair(shape, std, 0.0, seed)
    policy = mean.clone().requires_grad_()
    losses = tailorpo_loss(policy, mean, winner, loser, std, beta, reduction)
    assert torch.equal(losses, torch.full((shape[0],), math.log(2), dtype=torch.float32))
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    elements = policy[0].numel() if reduction == "mean" else 1
    expected = -(beta / 2) * (winner - loser) / std**2 / elements
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item() + 1e-12)


def test_a_step_against_the_gradient_moves_the_policy_towards_the_winner() -> None:
    mean, _, winner, loser = pair((3, 4, 8, 8), 0.5, 0.0, 0)
    policy = mean.clone().requires_grad_()
    before = tailorpo_loss(policy, mean, winner, loser, 0.5)
    (gradient,) = torch.autograd.grad(before.sum(), policy)
    moved = mean - 10 * gradient
    assert (tailorpo_loss(moved, mean, winner, loser, 0.5) < before).all()
    for sample, sign in ((winner, 1), (loser, -1)):
        rise = gaussian_log_prob(sample, moved, 0.5) - gaussian_log_prob(sample, mean, 0.5)
        assert (sign * rise > 0).all()


def test_the_gradient_goes_through_the_policy_alone() -> None:
    tensors = [tensor.requires_grad_() for tensor in pair((2, 4, 4, 4), 0.5, 0.3, 0)]
    policy, reference, winner, loser = tensors
    loss = tailorpo_loss(policy, reference.detach(), winner.detach(), loser.detach(), 0.5)
    loss.sum().backward()
    assert policy.grad is not None
    assert reference.grad is winner.grad is loser.grad is None


@given(shift=st.floats(0, 100), std=st.floats(0.02, 1), seed=st.integers(0, 1000), reduction=REDUCTIONS)
@settings(max_examples=40, deadline=None)
def test_the_clamp_bounds_the_loss(shift: float, std: float, seed: int, reduction: Reduction) -> None:
    losses = tailorpo_loss(*pair((2, 4, 4, 4), std, shift, seed), std, beta=0.1, reduction=reduction, ratio_clip=0.1)
    logits = torch.log(torch.expm1(losses.double())).neg()
    assert (logits.abs() <= 0.1 * (math.log(1.1) - math.log(0.9)) + 1e-6).all()
    assert (losses >= 0.683).all()
    assert (losses <= 0.7033).all()


def test_the_clamp_reaches_its_bounds_and_stops_the_gradient_there() -> None:
    reference, up = torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4)
    policy = up.clone().requires_grad_()
    bound = 0.1 * (math.log(1.1) - math.log(0.9))
    for winner, loser, logit in ((2 * up, -up, bound), (-up, 2 * up, -bound)):
        loss = tailorpo_loss(policy, reference, winner, loser, 0.5, beta=0.1, ratio_clip=0.1)
        assert loss.item() == pytest.approx(math.log1p(math.exp(-logit)), abs=1e-6)
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        assert not gradient.any()


def test_a_clamp_that_does_not_bind_changes_nothing() -> None:
    tensors = pair((3, 4, 8, 8), 0.5, 0.01, 3)
    free = tailorpo_loss(*tensors, 0.5)
    clamped = tailorpo_loss(*tensors, 0.5, ratio_clip=0.1)
    torch.testing.assert_close(clamped, free, rtol=0, atol=1e-6)


@given(shape=SHAPES, shift=st.floats(0, 3), reduction=REDUCTIONS, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_swapping_winner_and_loser_turns_the_margin_round(
    shape: tuple[int, ...], shift: float, reduction: Reduction, seed: int
) -> None:
    policy, reference, winner, loser = pair(shape, 0.5, shift, seed)
    margin = preference_margin(policy, reference, winner, loser, 0.5, reduction)
    swapped = preference_margin(policy, reference, loser, winner, 0.5, reduction)
    assert torch.equal(margin, -swapped)
    losses = [
        tailorpo_loss(policy, reference, *samples, 0.5, 0.1, reduction)
        for samples in ((winner, loser), (loser, winner))
    ]
    torch.testing.assert_close(losses[1] - losses[0], 0.1 * margin, rtol=1e-4, atol=1e-5)


def test_sum_is_mean_times_the_number_of_elements() -> None:
    tensors = pair((3, 4, 8, 8), 0.5, 0.3, 3)
    mean, total = (preference_margin(*tensors, 0.5, reduction) for reduction in ("mean", "sum"))
    torch.testing.assert_close(total, 256 * mean)


def test_the_defaults_are_beta_one_tenth_and_the_mean() -> None:
    tensors = pair((3, 4, 8, 8), 0.5, 0.3, 3)
    assert torch.equal(tailorpo_loss(*tensors, 0.5), tailorpo_loss(*tensors, 0.5, 0.1, "mean", None))


def test_half_precision_inputs_are_worked_on_in_float32() -> None:
    tensors = [tensor.half() for tensor in pair((3, 4, 8, 8), 0.5, 0.3, 3)]
    loss = tailorpo_loss(*tensors, 0.5)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, tailorpo_loss(*(tensor.float() for tensor in tensors), 0.5))
