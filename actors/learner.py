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


def train_loop(config: TrainLoopConfig) -> None:
    """What each Ray Train worker runs.

    Iteration i rolls out with policy version i; version `iterations` is the result. The dataset is executed afresh in
    every iteration, when all workers have asked for it, which worker 0 does only after publishing the weights.
    """
    settings = config.settings
    torch.set_num_threads(settings.learner.threads)
    learner = Learner(Policy.load(settings.model, settings.lora, settings.sampling, settings.seed), settings)
    first = _restore(learner)
    leads = ray.train.get_context().get_world_rank() == 0
    if leads:
        ray.get(config.journal.begin.remote(first))
        # Now that the learner has its place, workers beyond the minimum may take what is left.
        ray.get([fleet.grow.remote() for fleet in (config.reward_fleet, config.rollout_fleet)])
    for iteration in range(first, settings.iterations):
        if leads:
            _publish(config, learner, iteration)
        metrics = _iterate(config, learner, iteration)
        if leads:
            ray.get(config.journal.record.remote(metrics))
        if (iteration + 1) % settings.checkpoint.every == 0 or iteration + 1 == settings.iterations:
            _report(learner, Position(iteration + 1, iteration + 1), metrics, leads)
    if leads:
        _publish(config, learner, settings.iterations)


def _iterate(config: TrainLoopConfig, learner: Learner, iteration: int) -> dict[str, Any]:
    """Roll out and learn; the metrics are those of all workers together."""
    started = time.monotonic()
    table = _fetch_records()
    fetched = time.monotonic()
    metrics = learner.learn(table, iteration)
    if config.settings.records.save:
        rank = ray.train.get_context().get_world_rank()
        ray.get(config.journal.save_records.remote(iteration, rank, table))
    adapter_hash = common_hash(learner)
    finished = time.monotonic()
    return {
        "iteration": iteration,
        "policy_version": iteration,
        **metrics,
        "adapter_sha256": adapter_hash,
        "rollout_seconds": fetched - started,
        "learn_seconds": finished - fetched,
        "seconds": finished - started,
        "time": time.time(),
    }


def _fetch_records() -> pa.Table:
    """This worker's share of the iteration, which executes the rollouts."""
    shard = ray.train.get_dataset_shard("train")
    blocks = [block for block in shard.iter_batches(batch_size=None, batch_format="pyarrow") if len(block)]
    return pa.concat_tables(blocks)


def _publish(config: TrainLoopConfig, learner: Learner, version: int) -> None:
    """Make the adapter the current policy of the iteration of that number; draw the sample grid if it is due."""
    settings = config.settings
    adapter, normalisation = flatten_adapter(learner.policy), learner.normaliser.current
    ray.get(config.store.publish.remote(version, version, adapter, normalisation))
    if version % settings.samples.every == 0 or version == settings.iterations:
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


def _restore(learner: Learner) -> int:
    """Continue from Ray Train's latest checkpoint if there is one; return the iteration that comes next."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as directory:
        return load_checkpoint(learner, Path(directory)).next_iteration


def _report(learner: Learner, position: Position, metrics: dict[str, Any], leads: bool) -> None:
    """Hand Ray Train a checkpoint from worker 0; a barrier of all workers."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = None
        if leads:
            save_checkpoint(learner, position, Path(directory))
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"iteration_{position.next_iteration:06d}")
