"""RolloutWorker: holds a policy and turns batches of prompts into preference records or latents.

Whoever holds a handle of an actor imports the module of its class. The fleet and Ray Data's tasks do and need no torch,
so nothing at the top of this module imports it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.weights import WeightTicket, load_weights
from pipeline.config import RunSettings
from pipeline.prompts import SampleBatch

if TYPE_CHECKING:
    from actors.denoising import Probe

Array = NDArray[np.float32]


class RolloutWorker:
    """An asynchronous actor: while one batch waits for its scores, another is denoised.

    Network calls block the event loop and only scoring is awaited, so batches never interleave within a call.
    """

    def __init__(self, settings: RunSettings, reward_fleet: Any) -> None:
        """Load the base model and add an adapter, whose weights arrive with every call."""
        from actors.denoising import Denoiser

        self._denoiser = Denoiser(settings, reward_fleet)
        self._loaded: WeightTicket | None = None
        self._in_flight = 0
        self._idle = asyncio.Condition()

    async def ready(self) -> bool:
        """True once the model is loaded; the fleet leases the worker from then on."""
        return True

    async def collect(self, batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        """Roll out a batch with the ticket's weights and return its preference records.

        Raises:
            RewardError: a reward is not finite.
            WeightChecksumError: the weights arrived damaged.
        """
        async with self._weights(ticket):
            return await self._denoiser.collect(batch, ticket.version, ticket.normalisation)

    async def measure(self, probe: "Probe", batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        """Make a measurement on a batch with the ticket's weights; `probe` is sent by name, as a function of a module.

        Raises:
            RewardError, WeightChecksumError: as `collect`.
        """
        async with self._weights(ticket):
            return await self._denoiser.measure(probe, batch, ticket.normalisation)

    async def generate(self, batch: SampleBatch, ticket: WeightTicket) -> Array:
        """Clean latents (B, C, H, W) float32 of a batch of prompts with the ticket's weights."""
        async with self._weights(ticket):
            return self._denoiser.generate(batch)

    async def generate_reference(self, batch: SampleBatch) -> Array:
        """`generate` of the base model."""
        # No await inside: the adapter is off for this batch only.
        return self._denoiser.generate_reference(batch)

    @asynccontextmanager
    async def _weights(self, ticket: WeightTicket) -> AsyncIterator[None]:
        """Hold the ticket's weights; a batch with other weights waits until those in flight are through."""
        async with self._idle:
            await self._idle.wait_for(lambda: self._holds(ticket) or self._in_flight == 0)
            if not self._holds(ticket):
                self._denoiser.load(await asyncio.to_thread(load_weights, ticket))
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
