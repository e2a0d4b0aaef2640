"""Workers that draw finished images, with whichever adapter a call names or with none.

Whoever holds a handle of an actor imports the module of its class. The fleet and Ray Data's tasks do and need no torch,
so nothing at the top of this module imports it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.watchdog import ends_within
from actors.weights import WeightTicket, load_weights
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.prompts import SampleBatch
from pipeline.redacted_errors import errors_without_secrets

if TYPE_CHECKING:
    from actors.denoising import Sampler

Array = NDArray[np.float32]


class DrawingWorker:
    """An asynchronous actor around a sampler, which blocks the event loop while it draws."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler: Any = sampler
        self._loaded: WeightTicket | None = None
        self._in_flight = 0
        self._idle = asyncio.Condition()

    async def ready(self) -> bool:
        """True once the model is loaded; the fleet leases the worker from then on."""
        return True

    async def generate(self, batch: SampleBatch, ticket: WeightTicket) -> Array:
        """Clean latents (B, C, H, W) float32 of a batch of prompts with the ticket's weights."""
        async with self._weights(ticket):
            return self._sampler.generate(batch)

    async def generate_with_drift(self, batch: SampleBatch, ticket: WeightTicket) -> tuple[Array, Array]:
        """`generate`, and the drift (B,) of these trajectories from the base model."""
        async with self._weights(ticket):
            return self._sampler.generate_with_drift(batch)

    async def generate_reference(self, batch: SampleBatch) -> Array:
        """`generate` of the base model."""
        # No await inside: the adapter is off for this batch only.
        return self._sampler.generate_reference(batch)

    @asynccontextmanager
    async def _weights(self, ticket: WeightTicket) -> AsyncIterator[None]:
        """Hold the ticket's weights; a batch with other weights waits until those in flight are through."""
        async with self._idle:
            await self._idle.wait_for(lambda: self._holds(ticket) or self._in_flight == 0)
            if not self._holds(ticket):
                self._sampler.load(await asyncio.to_thread(load_weights, ticket))
                self._loaded = ticket
            self._in_flight += 1
        try:
            with errors_without_secrets():
                yield
        finally:
            async with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()

    def _holds(self, ticket: WeightTicket) -> bool:
        return self._loaded is not None and self._loaded.checksum == ticket.checksum


class LoraWorker(DrawingWorker):
    """Draws with any LoRA that `read_lora` reads; the weights of a ticket are a `LoraFile` as one buffer."""

    @errors_without_secrets()
    def __init__(self, settings: AdapterEvaluationSettings) -> None:
        """Load the base model."""
        with ends_within(settings.rollout.timeout_seconds):
            from actors.denoising import LoraSampler

            super().__init__(LoraSampler(settings))
