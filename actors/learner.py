"""The Ray Train loop: publish, fetch an iteration's records, learn, checkpoint."""

import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from actors.publishing import Publisher
from actors.rollouts import Rollouts
from actors.training import TrainLoopConfig
from actors.weights import checksum_of
from pipeline.adapter import flatten_adapter
from pipeline.checkpoint import Position, load_checkpoint, save_checkpoint
from pipeline.learning import Learner
from pipeline.logs import at_iteration
from pipeline.policy import Policy
from pipeline.rollout_policy import ROLLOUT_POLICY_FILE, RolloutPolicy
from pipeline.staleness import policy_age


def train_loop(config: TrainLoopConfig) -> None:
    """What each Ray Train worker runs.

    Iteration i rolls out with policy version i, or with version i - 1 where `rollout.max_staleness` lets it run while
    the learner is on the iteration before. The version after the last iteration is the result.
    """
    settings = config.settings
    torch.set_num_threads(settings.learner.threads)
    learner = Learner(Policy.load(settings.model, settings.lora, settings.sampling, settings.seed), settings)
    position, next_policy = _restore(learner)
    leads = ray.train.get_context().get_world_rank() == 0
    if leads:
        ray.get(config.journal.begin.remote(position.next_iteration))
        # Now that the learner has its place, workers beyond the minimum may take what is left.
        ray.get([fleet.grow.remote() for fleet in (config.reward_fleet, config.rollout_fleet)])
    publisher = Publisher(config, leads)
    rollouts = Rollouts(ray.train.get_dataset_shard("train"), publisher.publish, next_policy)
    while not settings.is_over(position.next_iteration, position.seconds):
        with at_iteration(position.next_iteration):
            metrics = _iterate(config, learner, rollouts, position)
        position = Position(position.next_iteration + 1, position.policy_version + 1, metrics["seconds_spent"])
        if leads:
            ray.get(config.journal.record.remote(metrics))
        over = settings.is_over(position.next_iteration, position.seconds)
        if over or position.next_iteration % settings.checkpoint.every == 0:
            _report(learner, position, metrics, rollouts, leads)
            if leads:
                ray.get(config.journal.note_checkpoint.remote())
    if rollouts.begun:  # a budget of time ended while the next iteration was on its way
        rollouts.finish()
    publisher.publish_result(RolloutPolicy.of(learner, position.policy_version), position.next_iteration)


def _iterate(config: TrainLoopConfig, learner: Learner, rollouts: Rollouts, position: Position) -> dict[str, Any]:
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
    fetched = time.monotonic()
    age = policy_age(table, version, settings.rollout.max_staleness)
    metrics = learner.learn(table, iteration)
    if settings.records.save:
        rank = ray.train.get_context().get_world_rank()
        ray.get(config.journal.save_records.remote(iteration, rank, table))
    adapter_hash = common_hash(learner)
    finished = time.monotonic()
    seconds = common_seconds(finished - started)
    return {
        "iteration": iteration,
        "policy_version": version,
        "policy_age": age,
        **metrics,
        "adapter_sha256": adapter_hash,
        "rollout_seconds": fetched - started,
        "learn_seconds": finished - fetched,
        "seconds": seconds,
        "seconds_spent": position.seconds + seconds,
        "time": time.time(),
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


def common_seconds(own: float) -> float:
    """The seconds of the slowest worker: all must agree on whether a budget of time is spent."""
    if not dist.is_initialized():
        return own
    longest = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return float(longest)


def _restore(learner: Learner) -> tuple[Position, RolloutPolicy | None]:
    """Continue from Ray Train's latest checkpoint if there is one.

    Returns:
        Where that stands, and the policy of the next iteration's rollouts where it is an older one.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Position(0, 0), None
    with checkpoint.as_directory() as directory:
        older = (Path(directory) / ROLLOUT_POLICY_FILE).is_file()
        return load_checkpoint(learner, Path(directory)), RolloutPolicy.load(Path(directory)) if older else None


def _report(learner: Learner, position: Position, metrics: dict[str, Any], rollouts: Rollouts, leads: bool) -> None:
    """Hand Ray Train a checkpoint from worker 0; a barrier of all workers."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = None
        if leads:
            if rollouts.next_policy is not None:
                rollouts.next_policy.save(Path(directory))
            save_checkpoint(learner, position, Path(directory))
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"iteration_{position.next_iteration:06d}")
