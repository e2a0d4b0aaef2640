"""The Ray Train loop: publish, fetch an iteration's records, learn, checkpoint."""

import logging
import time
from functools import partial
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from actors.liveness import own_actor_id
from actors.publishing import Publisher
from actors.rollouts import Rollouts
from actors.training import TrainLoopConfig
from actors.watchdog import ends_within
from actors.weights import checksum_of
from pipeline.adapter import flatten_adapter
from pipeline.checkpoint import Position, pack_checkpoint, unpack_checkpoint
from pipeline.checkpoint_store import CheckpointStore, Files
from pipeline.learning import Learner
from pipeline.logs import at_iteration
from pipeline.policy import Policy
from pipeline.rollout_policy import ROLLOUT_POLICY_FILE, RolloutPolicy
from pipeline.staleness import check_iteration, policy_age

logger = logging.getLogger(__name__)


def train_loop(config: TrainLoopConfig) -> None:
    """What each Ray Train worker runs.

    Iteration i rolls out with policy version i, or with version i - 1 where `rollout.max_staleness` lets it run while
    the learner is on the iteration before. The version after the last iteration is the result. A run that was asked to
    stop returns after a checkpoint, without a result.
    """
    settings = config.settings
    torch.set_num_threads(settings.learner.threads)
    with ends_within(settings.learner.timeout_seconds):
        learner = Learner(Policy.load(settings.model, settings.lora, settings.sampling, settings.seed), settings)
    leads = ray.train.get_context().get_world_rank() == 0
    position, next_policy = _restore(learner, config.checkpoints, leads)
    if leads:
        ray.get(config.journal.begin.remote(position.next_iteration))
        # Now that the learner has its place, workers beyond the minimum may take what is left.
        ray.get([fleet.grow.remote(own_actor_id()) for fleet in (config.reward_fleet, config.rollout_fleet)])
    # The seconds of the first iteration, and a budget of them, are without what its first workers load and wait for.
    ray.get([fleet.wait_ready.remote(1) for fleet in (config.reward_fleet, config.rollout_fleet)])
    publisher = Publisher(config, leads)
    rollouts = Rollouts(
        ray.train.get_dataset_shard("train"), publisher.publish, publisher.publish_again_if_lost, next_policy
    )
    while not settings.is_over(position.next_iteration, position.seconds):
        with at_iteration(position.next_iteration):
            metrics = _iterate(config, learner, publisher, rollouts, position)
        position = Position(position.next_iteration + 1, position.policy_version + 1, metrics["seconds_spent"])
        if leads:
            ray.get(config.journal.record.remote(metrics | _losses(config)))
        stops = common_maximum(float(leads and ray.get(config.journal.stop_requested.remote()))) > 0
        over = settings.is_over(position.next_iteration, position.seconds)
        if over or stops or position.next_iteration % settings.checkpoint.every == 0:
            if leads:
                config.checkpoints.save(position.next_iteration, _pack(learner, position, rollouts))
                ray.get(config.journal.note_checkpoint.remote())
            ray.train.report(metrics)
        if stops:
            return
    if rollouts.begun:  # a budget of time ended while the next iteration was on its way
        rollouts.finish()
    publisher.publish_result(RolloutPolicy.of(learner, position.policy_version), position.next_iteration)


def _iterate(
    config: TrainLoopConfig, learner: Learner, publisher: Publisher, rollouts: Rollouts, position: Position
) -> dict[str, Any]:
    """Roll out and learn; the metrics are those of all workers together."""
    settings, iteration, version = config.settings, position.next_iteration, position.policy_version
    started = time.monotonic()
    if not rollouts.begun:
        rollouts.begin(rollouts.next_policy or RolloutPolicy.of(learner, version), iteration)
    table = rollouts.finish()
    if settings.rollout.max_staleness:
        rollouts.next_policy = RolloutPolicy.of(learner, version)
        if not settings.is_over(iteration + 1, position.seconds):
            rollouts.begin(rollouts.next_policy, iteration + 1)
    # Worker 0 has grids drawn while the others wait for records.
    started += common_maximum(publisher.take_drawing_seconds())
    fetched = time.monotonic()
    check_iteration(table, iteration)
    age = policy_age(table, version, settings.rollout.max_staleness)
    metrics = learner.learn(table, iteration, partial(ends_within, settings.learner.timeout_seconds))
    if settings.records.save:
        rank = ray.train.get_context().get_world_rank()
        ray.get(config.journal.save_records.remote(iteration, rank, table))
    adapter_hash = common_hash(learner)
    finished = time.monotonic()
    # All must agree on whether a budget of time is spent.
    seconds = common_maximum(finished - started)
    return {
        "iteration": iteration,
        "policy_version": version,
        "policy_age": age,
        "learner_workers": ray.train.get_context().get_world_size(),
        **metrics,
        "adapter_sha256": adapter_hash,
        "rollout_seconds": fetched - started,
        "learn_seconds": finished - fetched,
        "seconds": seconds,
        "seconds_spent": position.seconds + seconds,
        "time": time.time(),
    }


def _losses(config: TrainLoopConfig) -> dict[str, int]:
    """Workers lost and calls garbled since this run was started or taken up, for the metrics."""
    stats = ray.get([fleet.stats.remote() for fleet in (config.rollout_fleet, config.reward_fleet)])
    return {
        f"{counter}/{fleet.name}": getattr(fleet, counter) for fleet in stats for counter in ("lost", "hung", "garbled")
    }


def common_hash(learner: Learner) -> str:
    """SHA-256 of the adapter, which all workers must share.

    Raises:
        RuntimeError: the workers' adapters have come apart.
    """
    own = checksum_of(flatten_adapter(learner.policy))
    if not dist.is_initialized():
        return own
    hashes: list[str] = [own] * dist.get_world_size()
    dist.all_gather_object(hashes, own)
    if set(hashes) != {own}:
        raise RuntimeError(f"the learner workers' adapters differ after the same steps: {hashes}")
    return own


def common_maximum(own: float) -> float:
    """The largest of all workers' numbers, so that they decide alike."""
    if not dist.is_initialized():
        return own
    largest = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)


def _restore(learner: Learner, checkpoints: CheckpointStore, leads: bool) -> tuple[Position, RolloutPolicy | None]:
    """Continue from the newest whole checkpoint if there is one.

    Worker 0 reads it for all workers, which must go on from the same one, wherever they can see.

    Returns:
        Where that stands, and the policy of the next iteration's rollouts where it is an older one.
    """
    files = _newest_files(checkpoints) if leads else None
    if dist.is_initialized():
        shared = [files]
        dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
        (files,) = shared
    if files is None:
        return Position(0, 0), None
    older = files.get(ROLLOUT_POLICY_FILE)
    return unpack_checkpoint(learner, files), None if older is None else RolloutPolicy.from_bytes(older)


def _newest_files(checkpoints: CheckpointStore) -> Files | None:
    checkpoints.check_visible()
    found = checkpoints.newest()
    if found.skipped:
        logger.warning(found.explanation())
    return found.files


def _pack(learner: Learner, position: Position, rollouts: Rollouts) -> Files:
    """The checkpoint, with the policy of the next iteration's rollouts where it is an older one."""
    files = pack_checkpoint(learner, position)
    if rollouts.next_policy is not None:
        files[ROLLOUT_POLICY_FILE] = rollouts.next_policy.to_bytes()
    return files
