"""The rewards of an evaluation that comes last are loaded once before all else, to see whether they can be."""

from typing import Any

import ray
from ray.exceptions import RayError

from actors.crew import shut_down, start_pool
from actors.failure import explain_failure
from actors.reward import RewardActor
from pipeline.evaluation.settings import AdapterEvaluationSettings


def try_rewards(settings: AdapterEvaluationSettings) -> None:
    """Start one of the reward actors that the evaluation will have, which hold all its rewards at once, and end it.

    Raises:
        ValueError: it does not start, with the reason.
    """
    pool = settings.reward_actors.model_copy(update={"min_workers": 1, "max_workers": 1})
    fleet: Any = start_pool("reward", RewardActor, (settings,), pool, calls_per_worker=1)
    try:
        ray.get(fleet.wait_ready.remote())
    except RayError as error:
        failure = explain_failure(error, journal=None)
        raise ValueError(f"the evaluation at the end could not load its rewards: {failure}") from error
    finally:
        shut_down(fleet)
        ray.kill(fleet)
