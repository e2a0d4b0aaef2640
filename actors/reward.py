"""RewardActor: holds the decoder and the reward models; scores latents, returns gradients, decodes images."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import RewardSettings, RunSettings
from pipeline.decoder import LatentDecoder
from pipeline.devices import resolve_device, resolve_dtype
from pipeline.rewards import Reward, load_reward
from pipeline.scoring import LatentScorer, check_scores

Array = NDArray[np.float32]


class RewardActor:
    """A synchronous actor: one call at a time, in the order of arrival, each batch exactly as it was sent."""

    def __init__(self, settings: RunSettings) -> None:
        """Load the decoder and the reward that is trained on; rewards of the evaluation load when first asked for."""
        torch.set_num_threads(settings.reward_actors.threads)
        self.device, self.dtype = resolve_device(settings.model.device), resolve_dtype(settings.model.dtype)
        self.decoder = LatentDecoder.load(
            settings.model.path, self.device, self.dtype, settings.reward_actors.decode_chunk
        )
        self.scorer = LatentScorer(self.decoder, self._load(settings.reward))
        self._evaluation: dict[RewardSettings, Reward] = {settings.reward: self.scorer.reward}

    def ready(self) -> bool:
        """True once the models are loaded; the fleet leases the actor from then on."""
        return True

    def score(self, latents: Array, prompts: Sequence[str]) -> Array:
        """Latents (B, C, H, W) float32 -> rewards (B,) float32.

        Raises:
            RewardError: a score is not finite, or there are not B of them.
        """
        return self.scorer.score(_to_tensor(latents), prompts).numpy()

    def score_with_gradient(self, latents: Array, prompts: Sequence[str]) -> tuple[Array, Array]:
        """Latents (B, C, H, W) float32 -> rewards (B,) and d reward / d latents (B, C, H, W), float32.

        Raises:
            RewardError: as `score`.
        """
        scores, gradients = self.scorer.score_with_gradient(_to_tensor(latents), prompts)
        return scores.numpy(), gradients.numpy()

    def evaluate(
        self, latents: Array, prompts: Sequence[str], rewards: Sequence[RewardSettings]
    ) -> tuple[Array, NDArray[np.uint8]]:
        """Finished images and what several rewards make of them.

        Returns:
            scores (R, B) float32, a row per reward, and images (B, H, W, 3) uint8.
        """
        with torch.no_grad():
            images = self.decoder.decode(_to_tensor(latents))
            scores = [self._checked_scores(reward, images, prompts) for reward in rewards]
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        stacked = torch.stack(scores) if scores else torch.empty(0, len(prompts))
        return stacked.numpy(), pixels.cpu().numpy()

    def _checked_scores(self, settings: RewardSettings, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if settings not in self._evaluation:
            self._evaluation[settings] = self._load(settings)
        reward = self._evaluation[settings]
        return check_scores(reward.score(images, prompts), prompts, reward.name)

    def _load(self, settings: RewardSettings) -> Reward:
        return load_reward(settings.name, settings.path, self.device, self.dtype, settings.scale)


def _to_tensor(latents: Array) -> Tensor:
    # A copy, because what comes out of the object store is read-only.
    return torch.from_numpy(np.array(latents))
