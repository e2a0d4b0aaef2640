"""Which CLIP shows how different the pictures of a prompt are."""

from collections.abc import Sequence

from pipeline.config import RewardSettings
from pipeline.rewards import reward_class


def first_embedder(rewards: Sequence[RewardSettings]) -> RewardSettings | None:
    """The first reward that is a CLIP, and so embeds images; None where there is none."""
    return next((reward for reward in rewards if embeds_images(reward)), None)


def embeds_images(reward: RewardSettings) -> bool:
    """Whether a reward is a CLIP.

    Raises:
        ValueError: no reward has that name.
    """
    from pipeline.rewards.clip import ClipReward

    return issubclass(reward_class(reward.name), ClipReward)
