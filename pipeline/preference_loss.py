"""What preference losses share: log-ratios of policy to reference, their clamp, and how far the policy has moved."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.transitions import Reduction, per_sample, reduce_latent


def preference_margin(
    policy_mean: Tensor,
    reference_mean: Tensor,
    winner: Tensor,
    loser: Tensor,
    std: Tensor | float,
    reduction: Reduction,
) -> Tensor:
    """The implicit-reward gap without beta, reduce((w - l)(mu_theta - mu_ref)) / std^2, (B,) float32.

    Because winner and loser share x_t and std, this is log pi_theta(w)/pi_ref(w) - log pi_theta(l)/pi_ref(l).
    Latents are (B, C, H, W); `std` is a scalar, (B,) or (B, 1, 1, 1).
    """
    # (B, 1, 1, 1) would spread the (B,) of a latent's own sum over a square.
    std = torch.as_tensor(std, dtype=torch.float32, device=policy_mean.device).flatten()
    shift = policy_mean.float() - reference_mean.float()
    return reduce_latent((winner.float() - loser.float()) * shift, reduction) / std**2


def log_ratio(
    policy_mean: Tensor, reference_mean: Tensor, sample: Tensor, std: Tensor | float, reduction: Reduction
) -> Tensor:
    """log pi_theta(sample) - log pi_ref(sample), (B,) float32, by the difference of squares."""
    std = torch.as_tensor(std, dtype=torch.float32, device=policy_mean.device)
    policy_mean, reference_mean, sample = policy_mean.float(), reference_mean.float(), sample.float()
    product = (policy_mean - reference_mean) * (2 * sample - policy_mean - reference_mean)
    return reduce_latent(product / (2 * per_sample(std, sample) ** 2), reduction)


def clamped_margin(log_ratio_winner: Tensor, log_ratio_loser: Tensor, ratio_clip: float | None) -> Tensor:
    """The difference of two log-ratios (B,), each ratio clamped to [1 - ratio_clip, 1 + ratio_clip] unless None."""
    if ratio_clip is None:
        return log_ratio_winner - log_ratio_loser
    low, high = math.log(1 - ratio_clip), math.log(1 + ratio_clip)
    return log_ratio_winner.clamp(low, high) - log_ratio_loser.clamp(low, high)


def implicit_accuracy(margins: Tensor) -> Tensor:
    """1 where the policy has come to favour the winner of a pair, 0 where the loser, (B,); at 0, neither, one half."""
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def clamped_share(log_ratios: Sequence[Tensor], ratio_clip: float | None) -> Tensor:
    """Of each record's log-ratios, k times (B,), the share that the clamp changes, (B,) float32."""
    ratios = torch.stack(list(log_ratios))  # (k, B)
    if ratio_clip is None:
        return torch.zeros_like(ratios[0])
    outside = (ratios < math.log(1 - ratio_clip)) | (ratios > math.log(1 + ratio_clip))
    return outside.float().mean(dim=0)


def drift(policy_mean: Tensor, reference_mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """KL(policy || reference) of one step, reduce(||mu_theta - mu_ref||^2) / (2 std^2), (B,) float32."""
    return reduce_latent((policy_mean - reference_mean) ** 2 / (2 * per_sample(std, policy_mean) ** 2), reduction)
