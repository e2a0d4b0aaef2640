"""The actors of a run, started in the order they need each other: weight store, journal, reward and rollout fleet."""

import logging
import math
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.capacity import WorkerRequest, check_capacity, check_memory, check_object_store, places_on_nodes
from actors.fleet import start_fleet
from actors.journal import start_journal
from actors.liveness import DEATHS
from actors.reward import RewardActor
from actors.rollout import RolloutWorker
from actors.weights import start_weight_store
from pipeline.arithmetic import run_arithmetic
from pipeline.config import RunSettings
from pipeline.logs import LineHandler, end_lines, log_lines
from pipeline.worker_settings import PoolSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crew:
    """Handles of the actors that outlive Ray Data's executions and Ray Train's workers.

    As long as they live, the driver's own lines go to the journal by `lines`.
    """

    store: Any
    journal: Any
    reward_fleet: Any
    rollout_fleet: Any
    lines: LineHandler

    def wait_ready(self) -> None:
        """Wait until the minimum of workers of both fleets has loaded its models.

        Raises:
            FleetError: workers fail to start, with the reason.
        """
        ray.get([self.reward_fleet.wait_ready.remote(), self.rollout_fleet.wait_ready.remote()])

    def dismiss(self) -> None:
        """End all actors."""
        end_lines(self.lines)
        for fleet in (self.rollout_fleet, self.reward_fleet):
            shut_down(fleet)
        for actor in (self.rollout_fleet, self.reward_fleet, self.journal, self.store):
            ray.kill(actor)


def shut_down(fleet: Any) -> None:
    """End the workers of a fleet, also of one that has died and so has none."""
    try:
        ray.get(fleet.shutdown.remote())
    except DEATHS as error:
        # It has left no workers behind. Why the run ends is told elsewhere, and must not be hidden by this.
        logger.warning("a fleet had died before it was dismissed: %s", error)


def check_room(settings: RunSettings) -> None:
    """Refuse a run that the connected cluster can never hold.

    Raises:
        ValueError: the cluster has a fixed size, and the minimum of workers, or of object store, does not fit.
    """
    check_capacity(worker_requests(settings))
    check_memory(worker_requests(settings))
    _check_elastic_learner(settings)
    check_object_store(run_arithmetic(settings).object_store_bytes_at_once, settings.rollout.trajectories)


def _check_elastic_learner(settings: RunSettings) -> None:
    """Refuse an elastic learner for which Ray Train would ask for more workers than the other roles leave room for.

    It asks for as many as the nodes could hold if they were empty, and would wait for those for ever.

    Raises:
        ValueError: as `check_room`.
    """
    fewest, most = min(settings.learner.worker_counts), max(settings.learner.worker_counts)
    asked_for = min(most, places_on_nodes(resources_of(settings.learner)))
    if asked_for <= fewest:
        return
    reward_actors, rollout_workers = settings.reward_actors.min_workers, settings.rollout.min_workers
    try:
        check_capacity(_requests(settings, reward_actors, rollout_workers, asked_for))
    except ValueError as error:
        raise ValueError(
            f"learner.min_workers={fewest} with learner.num_workers={most} makes Ray Train ask for {asked_for} "
            f"workers, which the nodes could hold if they were empty; set num_workers to what fits. {error}"
        ) from error


def start_crew(settings: RunSettings, run_directory: Path) -> Crew:
    """Start the actors; those that cannot be placed yet wait for nodes."""
    store, journal = start_weight_store(), start_journal(run_directory, settings)
    rewards = start_pool(
        "reward",
        RewardActor,
        (settings,),
        settings.reward_actors,
        calls_per_worker=1,
        run=settings.name,
        journal=journal,
    )
    rollouts = start_pool(
        "rollout",
        RolloutWorker,
        (settings, rewards),
        settings.rollout,
        calls_per_worker=settings.rollout.batches_in_flight,
        run=settings.name,
        journal=journal,
    )
    return Crew(store, journal, rewards, rollouts, log_lines(journal.log.remote, "driver", socket.gethostname()))


def worker_requests(settings: RunSettings) -> list[WorkerRequest]:
    """The least that must fit on the cluster at once."""
    learners = min(settings.learner.worker_counts)
    return _requests(settings, settings.reward_actors.min_workers, settings.rollout.min_workers, learners)


def most_worker_requests(settings: RunSettings) -> list[WorkerRequest]:
    """All workers that the run will ever ask for."""
    learners = max(settings.learner.worker_counts)
    return _requests(settings, settings.reward_actors.max_workers, settings.rollout.max_workers, learners)


def cpus_of_all_workers(settings: RunSettings) -> float:
    """CPUs that the pools at their maximum and the learner reserve together."""
    pools = settings.reward_actors.max_workers * settings.reward_actors.num_cpus
    pools += settings.rollout.max_workers * settings.rollout.num_cpus
    return pools + settings.learner.num_workers * settings.learner.num_cpus


def _requests(settings: RunSettings, reward_actors: int, rollout_workers: int, learners: int) -> list[WorkerRequest]:
    return [
        WorkerRequest("reward_actors", reward_actors, resources_of(settings.reward_actors)),
        WorkerRequest("rollout", rollout_workers, resources_of(settings.rollout)),
        WorkerRequest("learner", learners, resources_of(settings.learner)),
    ]


def start_pool(
    name: str,
    actor_class: type,
    actor_args: tuple[Any, ...],
    pool: PoolSettings,
    calls_per_worker: int,
    run: str = "",
    journal: Any = None,
) -> Any:
    """Start a fleet of equal actors as the settings of its pool say; `run` and `journal` as in `start_fleet`."""
    return start_fleet(
        name,
        actor_class,
        actor_args=actor_args,
        actor_options={"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus},
        min_workers=pool.min_workers,
        max_workers=pool.max_workers,
        calls_per_worker=calls_per_worker,
        call_timeout_s=pool.timeout_seconds,
        idle_timeout_s=math.inf if pool.idle_seconds is None else pool.idle_seconds,
        run=run,
        journal=journal,
    )


def resources_of(workers: Any) -> dict[str, float]:
    """What each worker of a pool, or of the learner, reserves."""
    return {"CPU": workers.num_cpus, "GPU": workers.num_gpus}
