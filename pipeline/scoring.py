"""Rewards of latents: decode, score, and on request differentiate, one chunk of bounded memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.decoder import LatentDecoder
from pipeline.pull_back import pull_back
from pipeline.rewards.base import NonFiniteImageError, NonFiniteScoreError, Reward
from pipeline.rewards.base import RewardError as RewardError

logger = logging.getLogger(__name__)


class AsyncScorer(Protocol):
    """Where rollouts get rewards from: this process, or reward actors elsewhere."""

    async def score(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """See :meth:`LatentScorer.score`."""

    async def score_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`LatentScorer.score_with_gradient`."""


class LatentScorer:
    """The step-wise reward r(c, decode(x)) of clean or predicted clean latents x, with its gradient in x."""

    def __init__(self, decoder: LatentDecoder, reward: Reward) -> None:
        self.decoder = decoder
        self.reward = reward

    @torch.no_grad()
    def score(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """Score ``latents`` (B, C, h, w) float32 against ``prompts`` (B).

        Args:
            timestep: diffusion time of the network call that predicted ``latents``, 0 if they are finished; a
                step-aware reward depends on it.

        Returns:
            (B,) float32 on the CPU, in the reward's own unit.

        Raises:
            RewardError: the reward returned NaN, infinity or a wrong shape.
        """
        chunks = in_chunks(latents, prompts, self.decoder.chunk_size)
        return torch.cat([self._score_chunk(chunk, texts, timestep) for chunk, texts in chunks])

    def score_with_gradient(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> tuple[Tensor, Tensor]:
        """:meth:`score` of ``latents`` (B, C, h, w) against ``prompts`` (B), with d score_i / d latents_i.

        The graph of a chunk is freed before the next one starts, so memory does not grow with B.

        Returns:
            scores (B,) and gradients (B, C, h, w), both float32 on the CPU, in the reward's own unit.

        Raises:
            ValueError: the reward is not differentiable.
            RewardError: a score is NaN or infinite, or every gradient is, or the scores have a wrong shape.
        """
        if not self.reward.differentiable:
            raise ValueError(
                f"reward {self.reward.name!r} is not differentiable: it ranks samples but cannot guide them"
            )
        chunks = in_chunks(latents, prompts, self.decoder.gradient_chunk_size)
        results = [self._chunk_gradient(chunk, texts, timestep) for chunk, texts in chunks]
        scores, gradients = zip(*results, strict=True)
        return torch.cat(scores), check_gradients(torch.cat(gradients), prompts, self.reward.name)

    def _images(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """(b, C, h, w) -> (b, 3, H, W)."""
        return check_images(self.decoder.decode(latents, timestep), prompts, self.reward.name)

    def _score_chunk(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """(b, C, h, w) -> (b,) float32 on the CPU."""
        images = self._images(latents, prompts, timestep)
        scores = self.reward.score_at(images, prompts, timesteps_of(prompts, timestep))
        return check_scores(scores, prompts, self.reward.name)

    @torch.enable_grad()
    def _chunk_gradient(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> tuple[Tensor, Tensor]:
        """(b, C, h, w) -> scores (b,), gradients (b, C, h, w), float32 on the CPU."""
        leaf = latents.detach().to(self.decoder.device, torch.float32).requires_grad_()
        images = self._images(leaf, prompts, timestep)
        shown = images.detach().requires_grad_()
        scores = self.reward.score_at(shown, prompts, timesteps_of(prompts, timestep))
        checked = check_scores(scores, prompts, self.reward.name)
        # A score depends on its own image alone, so the gradient of the sum holds every sample's gradient. This
        # frees the reward's graph before that of the decoder is walked.
        (image_gradients,) = torch.autograd.grad(scores.sum(), shown)
        gradients = pull_back(images, leaf, image_gradients)
        return checked, gradients.cpu()


class InProcessScorer:
    """A :class:`LatentScorer` of this process behind the asynchronous interface; it computes before it returns."""

    def __init__(self, scorer: LatentScorer) -> None:
        self.scorer = scorer

    async def score(self, latents: Tensor, prompts: Sequence[str], timestep: int) -> Tensor:
        """See :meth:`LatentScorer.score`."""
        return self.scorer.score(latents, prompts, timestep)

    async def score_with_gradient(
        self, latents: Tensor, prompts: Sequence[str], timestep: int
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`LatentScorer.score_with_gradient`."""
        return self.scorer.score_with_gradient(latents, prompts, timestep)


def in_chunks(latents: Tensor, prompts: Sequence[str], size: int) -> list[tuple[Tensor, Sequence[str]]]:
    """Cut ``latents`` (B, C, h, w) and ``prompts`` (B) into pieces of at most ``size``, in order."""
    assert len(latents) == len(prompts) > 0, f"{len(latents)} latents for {len(prompts)} prompts"
    starts = range(0, len(prompts), size)
    return [(latents[start : start + size], prompts[start : start + size]) for start in starts]


def timesteps_of(prompts: Sequence[str], timestep: int) -> Tensor:
    """``timestep`` once for each of ``prompts``, (B,) int64, as rewards take it."""
    return torch.full((len(prompts),), timestep, dtype=torch.int64)


def check_images(images: Tensor, prompts: Sequence[str], reward_name: str) -> Tensor:
    """Return decoded ``images`` (B, 3, H, W), if they are finite; a reward may turn NaN into anything, or choke on it.

    Raises:
        NonFiniteImageError: NaN or infinity; the message names the reward and the first offending prompt.
    """
    finite = torch.isfinite(images.detach()).flatten(start_dim=1).all(dim=1)
    if not finite.all():
        offender = prompts[int((~finite).nonzero()[0])]
        raise NonFiniteImageError(
            f"reward {reward_name!r} cannot score the image decoded for the prompt {offender!r}: it has NaN pixels"
        )
    return images


def check_scores(scores: Tensor, prompts: Sequence[str], reward_name: str) -> Tensor:
    """Return ``scores`` as (B,) float32 on the CPU, detached, if they are one finite number for each of ``prompts``.

    Raises:
        RewardError: another shape; the message names the reward and the prompt.
        NonFiniteScoreError: NaN or infinity.
    """
    if tuple(scores.shape) != (len(prompts),):
        raise RewardError(
            f"reward {reward_name!r} returned the shape {tuple(scores.shape)} instead of ({len(prompts)},) "
            f"for the prompts starting with {prompts[0]!r}; score returns one number for each image"
        )
    checked = scores.detach().to("cpu", torch.float32)
    finite = torch.isfinite(checked)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise NonFiniteScoreError(
            f"reward {reward_name!r} returned {checked[index].item()} for the prompt {prompts[index]!r}"
        )
    return checked


def check_gradients(gradients: Tensor, prompts: Sequence[str], reward_name: str) -> Tensor:
    """Return ``gradients`` (B, C, h, w), if those of some samples are finite.

    In half precision the decoder or the reward may overflow on the way back though the score is sound. Guidance leaves
    such a sample where it is, and a warning says so.

    Raises:
        NonFiniteScoreError: NaN or infinity in all of them; the message names the reward and the first prompt.
    """
    finite = torch.isfinite(gradients).flatten(start_dim=1).all(dim=1)
    if not finite.any():
        raise NonFiniteScoreError(
            f"reward {reward_name!r} has a gradient that is not finite for the prompt {prompts[0]!r}"
        )
    if not finite.all():
        offender = prompts[int((~finite).nonzero()[0])]
        logger.warning(
            "reward %r: gradients of %d of %d samples are not finite, and these are not guided; the first is of %r",
            reward_name,
            int((~finite).sum()),
            len(prompts),
            offender,
        )
    return gradients
