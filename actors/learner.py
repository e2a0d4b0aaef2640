"""The Ray Train loop: fetch an iteration's records, learn, checkpoint, publish."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist

from actors.imaging import draw_images
from actors.training import TrainLoopConfig
from actors.weights import checksum_of
from pipeline.adapter import flatten_adapter
from pipeline.checkpoint import Position, load_checkpoint, save_checkpoint
from pipeline.learning import Learner
from pipeline.policy import Policy
from pipeline.records import oldest_version
from pipeline.reduction import largest_over_workers


def train_loop(config: TrainLoopConfig) -> None:
    """What each Ray Train worker runs.

    Iteration i rolls out with policy version i; the version after the last is the result. The dataset is executed
    afresh in every iteration, when all workers have asked for it, which worker 0 does only after publishing.
    """
    settings = config.settings
    torch.set_num_threads(settings.learner.threads)
    learner = Learner(Policy.load(settings.model, settings.lora, settings.sampling, settings.seed), settings)
    position = _restore(learner)
    leads = ray.train.get_context().get_world_rank() == 0
    if leads:
        ray.get(config.journal.begin.remote(position.next_iteration))
        # Now that the learner has its place, workers beyond the minimum may take what is left.
        ray.get([fleet.grow.remote() for fleet in (config.reward_fleet, config.rollout_fleet)])
    while not settings.is_over(position.next_iteration, position.seconds):
        if leads:
            _publish(config, learner, position)
        metrics = _iterate(config, learner, position)
        position = Position(position.next_iteration + 1, position.policy_version + 1, metrics["seconds_spent"])
        if leads:
            ray.get(config.journal.record.remote(metrics))
        over = settings.is_over(position.next_iteration, position.seconds)
        if over or position.next_iteration % settings.checkpoint.every == 0:
            _report(learner, position, metrics, leads)
            if leads:
                ray.get(config.journal.note_checkpoint.remote())
    if leads:
        _publish(config, learner, position)


def _iterate(config: TrainLoopConfig, learner: Learner, position: Position) -> dict[str, Any]:
    """Roll out and learn; the metrics are those of all workers together."""
    iteration = position.next_iteration
    started = time.monotonic()
    table = _fetch_records()
    fetched = time.monotonic()
    age = int(largest_over_workers(position.policy_version - oldest_version(table)))
    metrics = learner.learn(table, iteration)
    if config.settings.records.save:
        rank = ray.train.get_context().get_world_rank()
        ray.get(config.journal.save_records.remote(iteration, rank, table))
    adapter_hash = common_hash(learner)
    finished = time.monotonic()
    # All must agree on whether a budget of time is spent.
    seconds = largest_over_workers(finished - started)
    return {
        "iteration": iteration,
        "policy_version": position.policy_version,
        "policy_age": age,
        **metrics,
        "adapter_sha256": adapter_hash,
        "rollout_seconds": fetched - started,
        "learn_seconds": finished - fetched,
        "seconds": seconds,
        "seconds_spent": position.seconds + seconds,
        "time": time.time(),
    }


def _fetch_records() -> pa.Table:
    """This worker's share of the iteration, which executes the rollouts."""
    shard = ray.train.get_dataset_shard("train")
    blocks = [block for block in shard.iter_batches(batch_size=None, batch_format="pyarrow") if len(block)]
    return pa.concat_tables(blocks)


def _publish(config: TrainLoopConfig, learner: Learner, position: Position) -> None:
    """Make the adapter the current policy of the iteration that comes next; draw the sample grid if it is due."""
    settings, version = config.settings, position.policy_version
    adapter, normalisation = flatten_adapter(learner.policy), learner.normaliser.current
    ray.get(config.store.publish.remote(version, position.next_iteration, adapter, normalisation))
    if version % settings.samples.every == 0 or settings.is_over(position.next_iteration, position.seconds):
        ticket = ray.get(config.store.current.remote())
        images = asyncio.run(
            draw_images(
                config.rollout_fleet,
                config.reward_fleet,
                config.sample_prompts,
                settings.samples.count,
                settings.evaluation.batch_size,
                ticket,
            )
        )
        ray.get(config.journal.save_grid.remote(version, images))


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


def _restore(learner: Learner) -> Position:
    """Continue from Ray Train's latest checkpoint if there is one; return where that stands."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Position(0, 0)
    with checkpoint.as_directory() as directory:
        return load_checkpoint(learner, Path(directory))


def _report(learner: Learner, position: Position, metrics: dict[str, Any], leads: bool) -> None:
    """Hand Ray Train a checkpoint from worker 0; a barrier of all workers."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = None
        if leads:
            save_checkpoint(learner, position, Path(directory))
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"iteration_{position.next_iteration:06d}")
