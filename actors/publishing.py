"""Worker 0 of the learner publishes policies and has sample grids drawn; the other workers have no part in it."""

import asyncio
import logging
import time

import ray

from actors.imaging import draw_images
from actors.training import TrainLoopConfig
from pipeline.rollout_policy import RolloutPolicy

logger = logging.getLogger(__name__)


class Publisher:
    """Hands policies to the weight store, each for an iteration, and draws the sample grids."""

    def __init__(self, config: TrainLoopConfig, leads: bool) -> None:
        """`leads`: whether this is worker 0."""
        self._config = config
        self._leads = leads
        self._newest_grid = -1
        self._drawing_seconds = 0.0
        self._published: tuple[RolloutPolicy, int] | None = None

    def publish(self, policy: RolloutPolicy, iteration: int) -> None:
        """Make `policy` the current one, for `iteration`; draw the grid of every `samples.every`-th version, once."""
        if self._leads:
            self._published = policy, iteration
            self._hand_over(policy, iteration)
            if policy.version % self._config.settings.samples.every == 0:
                self._draw_grid(policy.version)

    def take_drawing_seconds(self) -> float:
        """Seconds that sample grids took since this was last asked: they are no part of the iteration around them."""
        seconds, self._drawing_seconds = self._drawing_seconds, 0.0
        return seconds

    def publish_again_if_lost(self) -> None:
        """Hand the newest policy over once more to a store that was lost and started anew."""
        if self._published is not None and not ray.get(self._config.store.versions.remote()):
            policy, iteration = self._published
            self._hand_over(policy, iteration)
            logger.warning("the weight store was lost; policy version %d was published again", policy.version)

    def publish_result(self, policy: RolloutPolicy, iterations: int) -> None:
        """Make `policy` the current one, and draw its grid, after all `iterations`."""
        self.publish(policy, iterations)
        if self._leads:
            self._draw_grid(policy.version)

    def _hand_over(self, policy: RolloutPolicy, iteration: int) -> None:
        store = self._config.store
        ray.get(store.publish.remote(policy.version, iteration, policy.adapter, policy.normalisation))

    def _draw_grid(self, version: int) -> None:
        if version <= self._newest_grid:
            return
        self._newest_grid = version
        started = time.monotonic()
        config, settings = self._config, self._config.settings
        ticket = ray.get(config.store.current.remote())
        images = asyncio.run(
            draw_images(
                config.rollout_fleet,
                config.reward_fleet,
                config.sample_prompts,
                settings.samples.count,
                settings.evaluation.batch_size,
                ticket,
            )
        )
        ray.get(config.journal.save_grid.remote(version, images))
        self._drawing_seconds += time.monotonic() - started
