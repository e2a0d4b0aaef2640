"""What a run waits for that has not begun: a place for its learner, or a worker that is ready."""

import logging

import ray
from ray.exceptions import RayError

from actors.crew import Crew, resources_of
from actors.fleet_state import FleetStats
from pipeline.config import RunSettings

logger = logging.getLogger(__name__)


def what_is_waited_for(settings: RunSettings, crew: Crew) -> str:
    """In one line, with what the cluster has left; empty where every role has its place and its models."""
    try:
        return _what_is_waited_for(settings, crew)
    except RayError as error:  # of which the run itself hears, and tells
        logger.info("cannot ask what is waited for: %s", error)
        return ""


def _what_is_waited_for(settings: RunSettings, crew: Crew) -> str:
    fleets: list[FleetStats] = ray.get([fleet.stats.remote() for fleet in (crew.reward_fleet, crew.rollout_fleet)])
    pools = dict(zip(("reward_actors", "rollout"), (settings.reward_actors, settings.rollout), strict=True))
    waiting = [
        f"{role}: {max(1, stats.pending)} of its workers, {_format(resources_of(pool))} each"
        for (role, pool), stats in zip(pools.items(), fleets, strict=True)
        if not stats.ready
    ]
    if not ray.get(crew.journal.has_begun.remote()):
        learners = min(settings.learner.worker_counts)
        waiting.append(f"learner: {learners} of its workers, {_format(resources_of(settings.learner))} each")
    if not waiting:
        return ""
    free = {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}
    nodes = sum(node["Alive"] for node in ray.nodes())
    return (
        f"not ready yet, because they load or find no room: {'; '.join(waiting)}; free on {nodes} nodes: "
        f"{_format(free)}"
    )


def _format(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
