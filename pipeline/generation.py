"""Plain sampling, for image grids and evaluation: no candidates, no records."""

from torch import Tensor

from pipeline.noise import EVALUATION_ITERATION, INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch


def evaluation_batch(prompts: list[str], start: int, count: int) -> SampleBatch:
    """Samples start..start+count-1 of evaluation; sample i draws prompt i, round and round."""
    samples = tuple(range(start, start + count))
    return SampleBatch(EVALUATION_ITERATION, samples, tuple(prompts[sample % len(prompts)] for sample in samples))


def generate_latents(policy: Policy, batch: SampleBatch, run_seed: int) -> Tensor:
    """Clean latents x_0 (B, C, H, W) float32 of a batch of prompts, one network call per step.

    The noise depends on the seed and the sample, not on the policy, so base and aligned images are pairs.
    """
    noise = SampleNoise(run_seed, batch.iteration, batch.samples)
    prompts = list(batch.prompts)
    x_t = noise.draw(policy.latent_shape, INITIAL_STEP).to(policy.device)
    for step in range(policy.transition.num_steps):
        mean, std = policy.transition.mean_std(policy.predict(x_t, step, prompts), x_t, step)
        x_t = mean + std * noise.draw(policy.latent_shape, step).to(policy.device)
    return x_t
