"""Which CLIP shows how different the pictures of a prompt are."""

from collections.abc import Sequence

from pipeline.config import RewardSettings
from pipeline.rewards import reward_class


def first_embedder(rewards: Sequence[RewardSettings]) -> RewardSettings | None:
    """The first reward that embeds images; None where there is none."""
    return next((reward for reward in rewards if embeds_images(reward)), None)


def embeds_images(reward: RewardSettings) -> bool:
    """Whether a reward looks at images through a CLIP.

    Raises:
        ValueError: no reward has that name.
    """
    return reward_class(reward.name).embeds
