"""RolloutWorker: holds a policy and turns batches of prompts into preference records or latents."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.leasing import call_leased
from actors.weights import WeightTicket, load_weights
from pipeline.adapter import load_flat_adapter
from pipeline.config import RunSettings
from pipeline.generation import generate_latents
from pipeline.methods.tailorpo import collect
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch

Array = NDArray[np.float32]


class RemoteScorer:
    """The asynchronous scorer of a rollout, backed by a fleet of reward actors. Only latents travel."""

    def __init__(self, fleet: Any) -> None:
        """Take the handle of the fleet of `RewardActor`s."""
        self.fleet = fleet

    async def score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Latents (B, C, H, W) -> rewards (B,) float32."""
        return torch.from_numpy(np.array(await call_leased(self.fleet, "score", to_array(latents), list(prompts))))

    async def score_with_gradient(self, latents: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Latents (B, C, H, W) -> rewards (B,) and their gradients (B, C, H, W), float32."""
        scores, gradients = await call_leased(self.fleet, "score_with_gradient", to_array(latents), list(prompts))
        return torch.from_numpy(np.array(scores)), torch.from_numpy(np.array(gradients))


class RolloutWorker:
    """An asynchronous actor: while one batch waits for its scores, another is denoised.

    Network calls block the event loop and only scoring is awaited, so batches never interleave within a call.
    """

    def __init__(self, settings: RunSettings, reward_fleet: Any, reward_scale: float) -> None:
        """Load the base model and add an adapter, whose weights arrive with every call."""
        torch.set_num_threads(settings.rollout.threads)
        self.settings = settings
        self.reward_scale = reward_scale
        self.scorer = RemoteScorer(reward_fleet)
        self.policy = Policy.load(settings.model, settings.lora, settings.sampling, settings.seed)
        self.policy.freeze()
        self._loaded: WeightTicket | None = None
        self._in_flight = 0
        self._idle = asyncio.Condition()

    async def ready(self) -> bool:
        """True once the model is loaded; the fleet leases the worker from then on."""
        return True

    async def collect(self, batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        """Roll out a batch with the ticket's weights and return its preference records."""
        async with self._weights(ticket):
            return await collect(
                self.policy,
                self.scorer,
                batch,
                self.settings.method,
                self.settings.seed,
                self.reward_scale,
                ticket.version,
            )

    async def generate(self, batch: SampleBatch, ticket: WeightTicket) -> Array:
        """Clean latents (B, C, H, W) float32 of a batch of prompts with the ticket's weights."""
        async with self._weights(ticket):
            return to_array(generate_latents(self.policy, batch, self.settings.seed))

    async def generate_reference(self, batch: SampleBatch) -> Array:
        """`generate` of the base model."""
        # No await inside: the adapter is off for this batch only.
        with self.policy.reference():
            return to_array(generate_latents(self.policy, batch, self.settings.seed))

    @asynccontextmanager
    async def _weights(self, ticket: WeightTicket) -> AsyncIterator[None]:
        """Hold the ticket's weights; a batch with other weights waits until those in flight are through."""
        async with self._idle:
            await self._idle.wait_for(lambda: self._holds(ticket) or self._in_flight == 0)
            if not self._holds(ticket):
                load_flat_adapter(self.policy, await asyncio.to_thread(load_weights, ticket))
                self._loaded = ticket
            self._in_flight += 1
        try:
            yield
        finally:
            async with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()

    def _holds(self, ticket: WeightTicket) -> bool:
        return self._loaded is not None and self._loaded.checksum == ticket.checksum


def to_array(latents: Tensor) -> Array:
    """A tensor as a float32 NumPy array, which the object store moves without a copy."""
    return latents.detach().float().cpu().numpy()
