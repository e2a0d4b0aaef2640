"""Gradient guidance of TailorPO-G: move the winner up the reward's gradient, keep the move only if it helped."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.policy import Policy
from pipeline.pull_back import pull_back
from pipeline.scoring import AsyncScorer


def guidance_schedule(num_trained_steps: int, eta_min: float, eta_max: float) -> Tensor:
    """The guidance strength of every trained step, (K,) float32 from noisy to clean.

    A half cosine from eta_min to eta_max; a single trained step takes eta_min.
    """
    if num_trained_steps == 1:
        return torch.tensor([eta_min], dtype=torch.float32)
    progress = torch.arange(num_trained_steps, dtype=torch.float64) / (num_trained_steps - 1)
    return (eta_min + (eta_max - eta_min) * (1 - torch.cos(math.pi * progress)) / 2).float()


@dataclass(frozen=True)
class GuidedWinner:
    """The winner after guidance: moved where the move raised its step-wise reward, untouched elsewhere."""

    latents: Tensor  # (B, C, H, W)
    model_output: Tensor  # (B, C, H, W) network output at `latents`, which the next step reuses
    scores: Tensor  # (B,) step-wise reward of `latents`
    accepted: Tensor  # (B,) bool
    move: Tensor  # (B,) ||w+ - w|| / (std sqrt(d)) of the proposed move, accepted or not


async def guide_winner(
    policy: Policy,
    scorer: AsyncScorer,
    winner: Tensor,
    winner_output: Tensor,
    winner_scores: Tensor,
    prompts: list[str],
    step: int,
    std: Tensor,
    strength: float,
    delta: float,
    reward_scale: float,
) -> GuidedWinner:
    """Propose w+ = w - strength * grad_w (r_high - r(w))^2 and accept it where r(w+) > r(w) (the paper's Eq. 13).

    r_high = stop_gradient(r(w)) + delta, so the move is 2 * strength * delta * grad_w r, with r in units of
    `reward_scale`. The gradient goes through the decoder and the reward (on the scorer's side) and through x0_hat,
    classifier-free guidance and the network (here): one forward and backward of the network, and one forward to accept.

    Args:
        winner: (B, C, H, W) x_s, with `winner_output` (B, C, H, W) and `winner_scores` (B,) known from the ranking.
        step: the grid step of x_s (one after the trained step).
        std: the trained step's standard deviation, the unit in which the move is reported.
    """
    x_s = winner.detach().clone()
    x0_hat = _predict_x0_with_graph(policy, x_s, step, prompts)
    timestep = policy.transition.timestep(step)
    _, gradient_at_x0 = await scorer.score_with_gradient(x0_hat.detach(), prompts, timestep)
    gradient = pull_back(x0_hat, x_s, gradient_at_x0.to(x0_hat.device))
    # In half precision the backward pass may overflow, or the network where the move was too far; such a sample keeps
    # its winner.
    finite = _are_finite(gradient)
    guided = winner + (2 * strength * delta / reward_scale) * gradient.where(_per_sample(finite), 0.0)
    guided_output = policy.predict(guided, step, prompts)
    finite = finite & _are_finite(guided_output)
    guided = guided.where(_per_sample(finite), winner)
    guided_output = guided_output.where(_per_sample(finite), winner_output)

    guided_scores = await scorer.score(policy.transition.predict_x0(guided_output, guided, step), prompts, timestep)
    accepted = (guided_scores > winner_scores) & finite.cpu()
    chosen = _per_sample(accepted.to(winner.device))
    distance = (guided - winner).flatten(1).norm(dim=1) / (std * math.sqrt(winner[0].numel()))
    return GuidedWinner(
        latents=torch.where(chosen, guided, winner),
        model_output=torch.where(chosen, guided_output, winner_output),
        scores=torch.where(accepted, guided_scores, winner_scores),
        accepted=accepted,
        move=distance.cpu(),
    )


def _are_finite(values: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,) bool."""
    return values.isfinite().flatten(1).all(dim=1)


def _per_sample(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _predict_x0_with_graph(policy: Policy, x_s: Tensor, step: int, prompts: list[str]) -> Tensor:
    # Grad mode belongs to the thread, and other batches run in it while this one waits: it is never held over an await.
    with torch.enable_grad():
        x_s.requires_grad_()
        model_output = policy.forward(x_s, step, prompts)
        return policy.transition.predict_x0(model_output, x_s, step)
