"""Several rewards at once: one decoding serves them all, and a rollout sees one scorer, their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.decoder import LatentDecoder
from pipeline.prompts import SampleBatch
from pipeline.pull_back import pull_back
from pipeline.reward_components import with_components
from pipeline.rewards.base import Reward
from pipeline.scoring import check_gradients, check_images, check_scores, in_chunks, timesteps_of
from pipeline.weighting import Normalisation


class RewardSet:
    """The raw step-wise scores of K rewards, and the gradient of a weighted sum of those that have one."""

    def __init__(self, decoder: LatentDecoder, rewards: Sequence[Reward]) -> None:
        self.decoder = decoder
        self.rewards = tuple(rewards)
        self.names = " + ".join(reward.name for reward in rewards)

    @torch.no_grad()
    def score_each(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """Score ``latents`` (B, C, h, w) float32, predicted at the time ``timestep``, against ``prompts`` (B).

        Returns:
            (K, B) float32 on the CPU, a row per reward in its own unit.

        Raises:
            RewardError: a reward returned NaN, infinity or a wrong shape.
        """
        chunks = in_chunks(latents, prompts, self.decoder.chunk_size)
        return torch.cat([self._score_chunk(chunk, texts, timestep) for chunk, texts in chunks], dim=1)

    def score_sum_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int, coefficients: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Sum coefficient_k r_k over the differentiable rewards, with its gradient; ``coefficients`` has all K.

        Returns:
            sums (B,) and gradients (B, C, h, w), both float32 on the CPU.

        Raises:
            RewardError: a score or the gradient is NaN or infinite, or the scores have a wrong shape.
        """
        chunks = in_chunks(latents, prompts, self.decoder.gradient_chunk_size)
        results = [self._chunk_gradient(chunk, texts, timestep, coefficients) for chunk, texts in chunks]
        sums, gradients = zip(*results, strict=True)
        guiding = " + ".join(reward.name for reward in self.rewards if reward.differentiable)
        return torch.cat(sums), check_gradients(torch.cat(gradients), prompts, guiding)

    def _score_chunk(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """(b, C, h, w) -> (K, b) on the CPU."""
        images = check_images(self.decoder.decode(latents, timestep), prompts, self.names)
        times = timesteps_of(prompts, timestep)
        return torch.stack(
            [check_scores(reward.score_at(images, prompts, times), prompts, reward.name) for reward in self.rewards]
        )

    @torch.enable_grad()
    def _chunk_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int, coefficients: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """(b, C, h, w) -> sums (b,), gradients (b, C, h, w), float32 on the CPU."""
        leaf = latents.detach().to(self.decoder.device, torch.float32).requires_grad_()
        images = check_images(self.decoder.decode(leaf, timestep), prompts, self.names)
        times = timesteps_of(prompts, timestep)
        shown = images.detach().requires_grad_()
        total = shown.new_zeros(len(prompts))
        for reward, coefficient in zip(self.rewards, coefficients, strict=True):
            if reward.differentiable:
                scores = reward.score_at(shown, prompts, times)
                check_scores(scores, prompts, reward.name)
                total = total + coefficient * scores
        assert total.requires_grad, "preflight refuses guidance without a differentiable reward"
        (image_gradients,) = torch.autograd.grad(total.sum(), shown)
        gradients = pull_back(images, leaf, image_gradients)
        return total.detach().cpu(), gradients.cpu()


class AsyncRewardSet(Protocol):
    """A :class:`RewardSet` of this process, or of reward actors elsewhere."""

    async def score_each(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """See :meth:`RewardSet.score_each`."""

    async def score_sum_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int, coefficients: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`RewardSet.score_sum_with_gradient`."""


class InProcessRewardSet:
    """A :class:`RewardSet` of this process behind the asynchronous interface."""

    def __init__(self, rewards: RewardSet) -> None:
        self.rewards = rewards

    async def score_each(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """See :meth:`RewardSet.score_each`."""
        return self.rewards.score_each(latents, prompts, timestep)

    async def score_sum_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int, coefficients: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`RewardSet.score_sum_with_gradient`."""
        return self.rewards.score_sum_with_gradient(latents, prompts, timestep, coefficients)


class WeightedScorer:
    """The scorer of one batch of a rollout with several rewards; it remembers the raw scores it gave last.

    Scores are the whole weighted sum; gradients are those of its differentiable rewards alone.
    """

    def __init__(self, rewards: AsyncRewardSet, normalisation: Normalisation) -> None:
        self.rewards = rewards
        self.normalisation = normalisation
        self.last_scores: Tensor | None = None

    async def score(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """Latents (B, C, H, W) -> weighted sums of the normalised rewards (B,) float32."""
        self.last_scores = await self.rewards.score_each(latents, prompts, timestep)
        return torch.from_numpy(self.normalisation.combine(self.last_scores.numpy()))

    def with_components(self, table: pa.Table, batch: SampleBatch, settings: RunSettings) -> pa.Table:
        """The records of the batch this scorer served, with the raw scores of its finished images."""
        assert self.last_scores is not None, "a method scores the finished images"
        columns, labels = settings.method.reward_columns, settings.trained_reward_labels
        return with_components(table, batch, self.last_scores, columns, labels, self.normalisation)

    async def score_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int
    ) -> tuple[Tensor, Tensor]:
        """Latents (B, C, H, W) -> sums (B,) over the differentiable rewards, not centred, and their gradients."""
        coefficients = self.normalisation.coefficients
        return await self.rewards.score_sum_with_gradient(latents, prompts, timestep, coefficients)
