"""Rewards that are first asked for when all else is done are loaded once before, to see whether they can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from actors.crew import shut_down, start_pool
from actors.failure import explain_failure
from actors.leasing import call_leased_sync
from actors.reward import RewardActor
from pipeline.config import RewardSettings

if TYPE_CHECKING:
    from pipeline.reward_models import ScoringSettings


def try_rewards(settings: ScoringSettings, rewards: Sequence[RewardSettings]) -> None:
    """Let one reward actor load the rewards of `settings` and `rewards`, one after another, and end it.

    Raises:
        ValueError: one cannot be loaded, with the reason.
    """
    pool = settings.reward_actors.model_copy(update={"min_workers": 1, "max_workers": 1})
    fleet: Any = start_pool("reward", RewardActor, (settings,), pool, calls_per_worker=1)
    try:
        call_leased_sync(fleet, "try_loading", rewards)
    except Exception as error:  # what a reward raises may be of any class
        raise ValueError(f"a reward cannot be loaded: {explain_failure(error, journal=None)}") from error
    finally:
        shut_down(fleet)
        ray.kill(fleet)
