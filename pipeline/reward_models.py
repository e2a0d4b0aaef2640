"""The decoder and the reward models of a run in one place: what a reward actor holds."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.config import ModelSettings, RewardSettings
from pipeline.decoder import LatentDecoder
from pipeline.devices import resolve_device, resolve_dtype
from pipeline.evaluation.image_statistics import image_statistics
from pipeline.evaluation.measured import ImageMeasures
from pipeline.pixels import to_pixels
from pipeline.reward_set import RewardSet
from pipeline.rewards import Reward, load_reward
from pipeline.scoring import LatentScorer, check_images, check_scores
from pipeline.worker_settings import RewardPoolSettings


class ScoringSettings(Protocol):
    """What of a run's or an evaluation's settings a reward actor needs."""

    @property
    def model(self) -> ModelSettings:
        """Whose decoder it is."""

    @property
    def rewards(self) -> Sequence[RewardSettings]:
        """The rewards that are loaded at once."""

    @property
    def reward_actors(self) -> RewardPoolSettings:
        """Threads and the size of chunks."""


class RewardModels:
    """Scores latents with the rewards that are trained on, and finished images with any rewards.

    `scorer` serves a run that trains on one reward, `reward_set` one that trains on several.
    """

    def __init__(self, settings: ScoringSettings) -> None:
        """Load the decoder and `settings.rewards`; other rewards load when first asked for."""
        self.device, self.dtype = resolve_device(settings.model.device), resolve_dtype(settings.model.dtype)
        pool = settings.reward_actors
        self.decoder = LatentDecoder.load(
            settings.model.path,
            self.device,
            self.dtype,
            chunk_size=pool.decode_chunk,
            gradient_chunk_size=pool.gradient_chunk,
            step_decoder=pool.step_decoder,
            revision=settings.model.revision,
        )
        trained = [self._load(reward) for reward in settings.rewards]
        self.scorer = LatentScorer(self.decoder, trained[0])
        self.reward_set = RewardSet(self.decoder, trained)
        self._loaded: dict[RewardSettings, Reward] = dict(zip(settings.rewards, trained, strict=True))

    def evaluate(
        self,
        latents: Tensor,
        prompts: Sequence[str],
        rewards: Sequence[RewardSettings],
        embedder: RewardSettings | None = None,
    ) -> ImageMeasures:
        """Decode latents (B, C, h, w) of finished images, score them with each of `rewards`, and measure them.

        Args:
            embedder: a reward that `embeds`, in whose space of images they are embedded too.

        Raises:
            RewardError: a score is not finite, or there are not B of them.
        """
        with torch.no_grad():
            images = self.decoder.decode(latents)
            if rewards:
                check_images(images, prompts, " + ".join(reward.name for reward in rewards))
            scores = [self._checked_scores(reward, images, prompts) for reward in rewards]
            aspects = [self._reward(reward).score_aspects(images, prompts).float().cpu() for reward in rewards]
            embeddings = images.new_empty(len(images), 0) if embedder is None else self._embed(embedder, images)
        return ImageMeasures(
            scores=torch.stack(scores, dim=1).numpy() if scores else np.empty((len(prompts), 0), np.float32),
            aspects=torch.cat(aspects, dim=1).numpy() if aspects else np.empty((len(prompts), 0), np.float32),
            statistics=image_statistics(images).T.numpy(),
            embeddings=embeddings.float().cpu().numpy(),
            images=to_pixels(images),
        )

    def try_loading(self, rewards: Sequence[RewardSettings]) -> None:
        """Load rewards that are first asked for at the end of a run, and let go of them again.

        Raises:
            ValueError, OSError, RuntimeError: one cannot be loaded.
        """
        for reward in rewards:
            if reward not in self._loaded:
                self._load(reward)
        torch.cuda.empty_cache()

    def _checked_scores(self, settings: RewardSettings, images: Tensor, prompts: Sequence[str]) -> Tensor:
        reward = self._reward(settings)
        return check_scores(reward.score(images, prompts), prompts, reward.name)

    def _embed(self, settings: RewardSettings, images: Tensor) -> Tensor:
        return self._reward(settings).embed_images(images)

    def _reward(self, settings: RewardSettings) -> Reward:
        if settings not in self._loaded:
            self._loaded[settings] = self._load(settings)
        return self._loaded[settings]

    def _load(self, settings: RewardSettings) -> Reward:
        return load_reward(settings.name, settings.path, self.device, self.dtype, settings.scale)
