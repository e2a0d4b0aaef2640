"""The decoder and the reward models of a run in one place: what a reward actor holds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config import RewardSettings, RunSettings
from pipeline.decoder import LatentDecoder
from pipeline.devices import resolve_device, resolve_dtype
from pipeline.rewards import Reward, load_reward
from pipeline.scoring import LatentScorer, check_scores


class RewardModels:
    """Scores latents with the reward that is trained on, and finished images with any rewards."""

    def __init__(self, settings: RunSettings) -> None:
        """Load the decoder and the reward that is trained on; rewards of the evaluation load when first asked for."""
        self.device, self.dtype = resolve_device(settings.model.device), resolve_dtype(settings.model.dtype)
        self.decoder = LatentDecoder.load(
            settings.model.path, self.device, self.dtype, settings.reward_actors.decode_chunk
        )
        self.scorer = LatentScorer(self.decoder, self._load(settings.reward))
        self._evaluation: dict[RewardSettings, Reward] = {settings.reward: self.scorer.reward}

    def evaluate(
        self, latents: Tensor, prompts: Sequence[str], rewards: Sequence[RewardSettings]
    ) -> tuple[Tensor, Tensor]:
        """Decode latents (B, C, h, w) of finished images and score them with each of `rewards`.

        Returns:
            scores (R, B) float32, a row per reward, and images (B, H, W, 3) uint8, both on the CPU.

        Raises:
            RewardError: a score is not finite, or there are not B of them.
        """
        with torch.no_grad():
            images = self.decoder.decode(latents)
            scores = [self._checked_scores(reward, images, prompts) for reward in rewards]
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return torch.stack(scores) if scores else torch.empty(0, len(prompts)), pixels.cpu()

    def _checked_scores(self, settings: RewardSettings, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if settings not in self._evaluation:
            self._evaluation[settings] = self._load(settings)
        reward = self._evaluation[settings]
        return check_scores(reward.score(images, prompts), prompts, reward.name)

    def _load(self, settings: RewardSettings) -> Reward:
        return load_reward(settings.name, settings.path, self.device, self.dtype, settings.scale)
