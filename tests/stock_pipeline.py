"""diffusers' own pipeline, fed with the noise of our samples: what an adapter must draw wherever it is loaded."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from pipeline.generation import evaluation_batch
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy

PROMPTS = ["a red circle", "a small blue star left of a green ring"]
SEED = 7


class FedDDIMScheduler(DDIMScheduler):
    """diffusers' own step, with the noise of our samples instead of its generator's."""

    fed_noise: SampleNoise

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, eta: float = 0.0, **_: Any) -> Any:
        index = self.timesteps.tolist().index(int(timestep))
        noise = self.fed_noise.draw(sample.shape[1:], index)
        return super().step(model_output, timestep, sample, eta, variance_noise=noise, return_dict=False)


def stock_latents(model: Path, adapter: Path | None, policy: Policy) -> torch.Tensor:
    """x_0 (B, C, H, W) by `StableDiffusionPipeline.__call__`, eta 1, with the policy's noise."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FedDDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, steps_offset=1)
    batch = evaluation_batch(PROMPTS, 0, 2)
    noise = SampleNoise(SEED, batch.iteration, batch.samples)
    pipeline.scheduler.fed_noise = noise
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
    return pipeline(
        prompt=PROMPTS,
        num_inference_steps=policy.transition.num_steps,
        guidance_scale=policy.guidance_scale,
        eta=1.0,
        latents=noise.draw(policy.latent_shape, INITIAL_STEP),
        output_type="latent",
        return_dict=False,
    )[0]
