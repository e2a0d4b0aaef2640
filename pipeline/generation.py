"""Plain sampling, for image grids and evaluation: no candidates, no records."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.noise import EVALUATION_ITERATION, INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.preference_loss import drift
from pipeline.prompts import SampleBatch

DRIFT_STEPS = 5
"""At how many steps the drift is measured; at each it would cost as much as drawing the images."""

Watcher = Callable[[int, Tensor, Tensor, Tensor], None]
"""What looks on at every step: its index, x_t (B, C, H, W), and mean (B, C, H, W) and deviation of the next latent."""


def evaluation_batch(prompts: list[str], start: int, count: int) -> SampleBatch:
    """Samples start..start+count-1 of evaluation; sample i draws prompt i, round and round."""
    samples = tuple(range(start, start + count))
    return SampleBatch(EVALUATION_ITERATION, samples, tuple(prompts[sample % len(prompts)] for sample in samples))


def generate_latents(policy: Policy, batch: SampleBatch, run_seed: int, watch: Watcher | None = None) -> Tensor:
    """Clean latents x_0 (B, C, H, W) float32 of a batch of prompts, one network call per step.

    The noise depends on the seed and the sample, not on the policy, so base and aligned images are pairs.
    """
    noise = SampleNoise(run_seed, batch.iteration, batch.samples)
    prompts = list(batch.prompts)
    x_t = noise.draw(policy.latent_shape, INITIAL_STEP).to(policy.device)
    for step in range(policy.transition.num_steps):
        mean, std = policy.transition.mean_std(policy.predict(x_t, step, prompts), x_t, step)
        if watch is not None:
            watch(step, x_t, mean, std)
        x_t = mean + std * noise.draw(policy.latent_shape, step).to(policy.device)
    return x_t


def drift_steps(num_steps: int) -> tuple[int, ...]:
    """The middles of up to `DRIFT_STEPS` equal parts of a grid, as step indices; all steps of a short one."""
    parts = min(num_steps, DRIFT_STEPS)
    return tuple((2 * part + 1) * num_steps // (2 * parts) for part in range(parts))


def generate_with_drift(policy: Policy, batch: SampleBatch, run_seed: int) -> tuple[Tensor, Tensor]:
    """`generate_latents`, and how far the policy has moved from the reference along these very trajectories.

    The drift is mean(||mu_theta - mu_ref||^2) / (2 std^2) over C, H, W, as in training, averaged over `drift_steps`
    without one that adds no noise. It costs a reference call at each of these steps. How much a step counts depends on
    the grid: of DDIM's 20, the last but one weighs more than twenty times as much as any other, for an equal difference
    of the predicted noise, and is among those measured. So it compares adapters on one grid, and is no estimate of the
    KL divergence of whole trajectories.

    Returns:
        x_0 (B, C, H, W) and drift (B,), both float32.
    """
    prompts, drifts = list(batch.prompts), []
    compared = drift_steps(policy.transition.num_steps)

    def compare(step: int, x_t: Tensor, mean: Tensor, std: Tensor) -> None:
        if step in compared and std > 0:
            reference, _ = policy.transition.mean_std(policy.predict_reference(x_t, step, prompts), x_t, step)
            drifts.append(drift(mean, reference, std, "mean"))

    return generate_latents(policy, batch, run_seed, compare), torch.stack(drifts).mean(dim=0)
