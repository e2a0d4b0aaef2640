"""RolloutWorker: holds a policy and turns batches of prompts into preference records or latents.

Whoever holds a handle of an actor imports the module of its class. The fleet and Ray Data's tasks do and need no torch,
so nothing at the top of this module imports it.
"""

import logging
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.drawing import DrawingWorker
from actors.logs import log_in_actor
from actors.metrics import RolloutMetrics
from actors.watchdog import ends_within
from actors.weights import WeightTicket
from pipeline.config import RunSettings
from pipeline.logs import at_iteration
from pipeline.prompts import SampleBatch
from pipeline.redacted_errors import errors_without_secrets

if TYPE_CHECKING:
    from actors.denoising import Probe

logger = logging.getLogger(__name__)


class RolloutWorker(DrawingWorker):
    """An asynchronous actor: while one batch waits for its scores, another is denoised.

    Network calls block the event loop and only scoring is awaited, so batches never interleave within a call.
    """

    @errors_without_secrets()
    def __init__(self, settings: RunSettings, reward_fleet: Any) -> None:
        """Load the base model and add an adapter, whose weights arrive with every call."""
        log_in_actor("rollout")
        with ends_within(settings.rollout.timeout_seconds):
            from actors.denoising import Denoiser

            super().__init__(Denoiser(settings, reward_fleet))
        self._metrics = RolloutMetrics(settings.name)
        self._trajectories_per_sample = settings.method.trajectories_per_sample

    async def collect(self, batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        """Roll out a batch with the ticket's weights and return its preference records.

        Raises:
            RewardError: a reward is not finite.
            WeightChecksumError: the weights arrived damaged.
        """
        trajectories, started = len(batch.samples) * self._trajectories_per_sample, time.monotonic()
        with at_iteration(ticket.iteration):
            try:
                async with self._weights(ticket):
                    table = await self._sampler.collect(batch, ticket.version, ticket.normalisation)
            except Exception:
                logger.exception("a batch of %d trajectories of policy version %d failed", trajectories, ticket.version)
                raise
            seconds = time.monotonic() - started
            logger.info("%d trajectories of policy version %d in %.1f s", trajectories, ticket.version, seconds)
        self._metrics.rolled_out(trajectories)
        return table

    async def measure(self, probe: "Probe", batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        """Make a measurement on a batch with the ticket's weights; `probe` is sent by name, as a function of a module.

        Raises:
            RewardError, WeightChecksumError: as `collect`.
        """
        async with self._weights(ticket):
            return await self._sampler.measure(probe, batch, ticket.normalisation)
