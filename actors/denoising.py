"""What a rollout worker computes: a policy that denoises batches, and the remote scorer it asks meanwhile."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.leasing import call_leased
from pipeline.adapter import load_flat_adapter
from pipeline.config import RunSettings
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.generation import generate_latents, generate_with_drift
from pipeline.lora_file import LoraFile
from pipeline.lora_policy import LoraPolicy
from pipeline.methods import create_method
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch
from pipeline.reward_set import WeightedScorer
from pipeline.scoring import AsyncScorer, RewardError
from pipeline.weighting import Normalisation

Array = NDArray[np.float32]

Probe = Callable[[Policy, AsyncScorer, SampleBatch, int], Awaitable[pa.Table]]
"""A measurement on a policy and the rewards, of a batch, with the run's seed."""


class RemoteScorer:
    """The asynchronous scorer of a rollout, backed by a fleet of reward actors. Only latents travel."""

    def __init__(self, fleet: Any) -> None:
        """Take the handle of the fleet of `RewardActor`s."""
        self.fleet = fleet

    async def score(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """Latents (B, C, H, W), predicted at the diffusion time `timestep` -> rewards (B,) float32."""
        scores = await self._ask("score", to_array(latents), list(prompts), timestep)
        return torch.from_numpy(np.array(scores))

    async def score_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int
    ) -> tuple[Tensor, Tensor]:
        """`score`, and the rewards' gradients (B, C, H, W) float32."""
        scores, gradients = await self._ask("score_with_gradient", to_array(latents), list(prompts), timestep)
        return torch.from_numpy(np.array(scores)), torch.from_numpy(np.array(gradients))

    async def score_each(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """`score`, raw and of each of several rewards, (K, B) float32."""
        scores = await self._ask("score_each", to_array(latents), list(prompts), timestep)
        return torch.from_numpy(np.array(scores))

    async def score_sum_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int, coefficients: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Latents (B, C, H, W) -> weighted sums (B,) of the differentiable rewards, and gradients (B, C, H, W)."""
        sums, gradients = await self._ask(
            "score_sum_with_gradient", to_array(latents), list(prompts), timestep, list(coefficients)
        )
        return torch.from_numpy(np.array(sums)), torch.from_numpy(np.array(gradients))

    async def _ask(self, method: str, *args: Any) -> Any:
        """A call of a reward actor; one that returns nonsense is asked once more, or another in its place."""
        return await call_leased(self.fleet, method, *args, nonsense=RewardError)


class Sampler:
    """A policy that draws finished images; `load` of a subclass gives it an adapter."""

    def __init__(self, policy: Policy, seed: int) -> None:
        self.policy = policy
        self.seed = seed

    def generate(self, batch: SampleBatch) -> Array:
        """Clean latents (B, C, H, W) float32."""
        return to_array(generate_latents(self.policy, batch, self.seed))

    def generate_with_drift(self, batch: SampleBatch) -> tuple[Array, Array]:
        """`generate`, and the drift (B,) from the reference."""
        latents, drift = generate_with_drift(self.policy, batch, self.seed)
        return to_array(latents), to_array(drift)

    def generate_reference(self, batch: SampleBatch) -> Array:
        """`generate` of the base model."""
        with self.policy.reference():
            return self.generate(batch)


class Denoiser(Sampler):
    """A policy with the adapter that was loaded last, for rollouts."""

    def __init__(self, settings: RunSettings, reward_fleet: Any) -> None:
        """Load the base model and add an adapter."""
        torch.set_num_threads(settings.rollout.threads)
        super().__init__(Policy.load(settings.model, settings.lora, settings.sampling, settings.seed), settings.seed)
        self.policy.freeze()
        self.settings = settings
        self.method = create_method(settings)
        self.scorer = RemoteScorer(reward_fleet)

    def load(self, adapter: Array) -> None:
        """Set the adapter, (parameters,) float32, of all later batches."""
        load_flat_adapter(self.policy, adapter)

    async def measure(self, probe: Probe, batch: SampleBatch, normalisation: Normalisation | None) -> pa.Table:
        """What `probe` finds out about a batch, its rewards being those of rollouts."""
        scorer = self.scorer if normalisation is None else WeightedScorer(self.scorer, normalisation)
        return await probe(self.policy, scorer, batch, self.settings.seed)

    async def collect(
        self, batch: SampleBatch, policy_version: int, normalisation: Normalisation | None = None
    ) -> pa.Table:
        """Roll out a batch and return its records; `normalisation` is that of several rewards."""
        if normalisation is None:
            return await self.method.collect(self.policy, self.scorer, batch, policy_version)
        scorer = WeightedScorer(self.scorer, normalisation)
        table = await self.method.collect(self.policy, scorer, batch, policy_version)
        return scorer.with_components(table, batch, self.settings)


class LoraSampler(Sampler):
    """A base model with any LoRA that `read_lora` reads."""

    policy: LoraPolicy

    def __init__(self, settings: AdapterEvaluationSettings) -> None:
        """Load the base model, without an adapter."""
        torch.set_num_threads(settings.rollout.threads)
        super().__init__(LoraPolicy.load(settings.model, None, settings.sampling, settings.seed), settings.seed)

    def load(self, buffer: NDArray[np.uint8]) -> None:
        """Hold the LoRA that `LoraFile.to_buffer` packed, for all later batches."""
        self.policy.hold(LoraFile.from_buffer(buffer))


def to_array(latents: Tensor) -> Array:
    """A tensor as a float32 NumPy array, which the object store moves without a copy."""
    return latents.detach().float().cpu().numpy()
