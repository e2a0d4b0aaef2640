"""Do rollouts and learning overlap when rollouts may be one version old?

    python -m benchmarks.overlap [--rollout-seconds 4] [--learn-seconds 3] [--iterations 8]

Both are replaced by sleeps, as long as GPUs might take; the fleet, the weight store, the Ray Data plan, the Ray Train
worker and its report to the controller are the job's own. Writes to results/overlap.json what an iteration takes with
rollout.max_staleness 0 and 1, beside the sum of both times and the longer of them.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
from ray.train import DataConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.cluster import connect, disconnect
from actors.dataset import rollout_dataset
from actors.fleet import start_fleet
from actors.inputs import read_inputs
from actors.journal import start_journal
from actors.rollouts import Rollouts
from actors.training import CONTROLLER_POLL_SECONDS
from actors.weights import WeightTicket, start_weight_store
from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.environment import describe_environment
from pipeline.prompts import SampleBatch
from pipeline.rollout_policy import RolloutPolicy
from pipeline.run_folder import write_json
from pipeline.staleness import policy_age

WORKERS = 2
ADAPTER_PARAMETERS = 800_000
"""As many as rank 4 has on Stable Diffusion v1.5."""


class SleepingWorker:
    """A rollout worker whose batch takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def ready(self) -> bool:
        """At once."""
        return True

    async def collect(self, batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        """Sleep, and say which policy it was."""
        await asyncio.sleep(self.seconds)
        return pa.table({"policy_version": pa.array([ticket.version] * len(batch.prompts), pa.int64())})


@dataclass(frozen=True)
class SleepingLearner:
    """What the Ray Train worker is told."""

    store: Any
    iterations: int
    learn_seconds: float
    max_staleness: int
    output: Path


def learn_asleep(loop_config: dict[str, Any]) -> None:
    """The learner's loop with a sleep for its optimiser steps; writes the seconds of each iteration."""
    config: SleepingLearner = loop_config["config"]

    def publish(policy: RolloutPolicy, iteration: int) -> None:
        ray.get(config.store.publish.remote(policy.version, iteration, policy.adapter, None))

    def policy_of(version: int) -> RolloutPolicy:
        return RolloutPolicy(version, np.full(ADAPTER_PARAMETERS, version, np.float32), None)

    rollouts = Rollouts(ray.train.get_dataset_shard("train"), publish, watch=lambda: None)
    seconds = []
    for iteration in range(config.iterations):
        started = time.monotonic()
        if not rollouts.begun:
            rollouts.begin(policy_of(iteration), iteration)
        table = rollouts.finish()
        if config.max_staleness and iteration + 1 < config.iterations:
            rollouts.begin(policy_of(iteration), iteration + 1)
        policy_age(table, iteration, config.max_staleness)
        time.sleep(config.learn_seconds)
        ray.train.report({"iteration": iteration})
        seconds.append(time.monotonic() - started)
    write_json(config.output, seconds)


def measure(settings: RunSettings, rollout_seconds: float, learn_seconds: float, max_staleness: int) -> list[float]:
    """Seconds of every iteration but the first, which starts processes, and the last, which begins no other."""
    with tempfile.TemporaryDirectory() as folder:
        store, journal = start_weight_store(), start_journal(Path(folder), settings)
        fleet = start_fleet(
            "rollout",
            SleepingWorker,
            actor_args=(rollout_seconds / (settings.batches_per_iteration / WORKERS),),
            actor_options={"num_cpus": 0.1},
            min_workers=WORKERS,
            max_workers=WORKERS,
        )
        dataset = rollout_dataset(settings, read_inputs(settings).batches, fleet, store, journal)
        output = Path(folder) / "seconds.json"
        learner = SleepingLearner(store, settings.iterations, learn_seconds, max_staleness, output)
        TorchTrainer(
            learn_asleep,
            train_loop_config={"config": learner},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.1}),
            run_config=RunConfig(name="checkpoints", storage_path=folder),
            datasets={"train": dataset},
            dataset_config=DataConfig(execution_options=dataset.context.execution_options),
        ).fit()
        ray.get(fleet.shutdown.remote())
        for actor in (fleet, journal, store):
            ray.kill(actor)
        return list(json.loads(output.read_text(encoding="utf-8")))[1:-1]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollout-seconds", type=float, default=4.0)
    parser.add_argument("--learn-seconds", type=float, default=3.0)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("results/overlap.json"))
    options = parser.parse_args()
    settings = load_settings(Path("configs/demo.yaml"), [f"iterations={options.iterations}", "rollout.batch_size=16"])
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = CONTROLLER_POLL_SECONDS
    cluster = connect(WORKERS + 2)
    try:
        seconds = {
            staleness: median(measure(settings, options.rollout_seconds, options.learn_seconds, staleness))
            for staleness in (0, 1)
        }
    finally:
        disconnect(cluster)
    longer = max(options.rollout_seconds, options.learn_seconds)
    result = {
        "rollout_seconds": options.rollout_seconds,
        "learn_seconds": options.learn_seconds,
        "sum_seconds": options.rollout_seconds + options.learn_seconds,
        "longer_seconds": longer,
        "iteration_seconds_staleness_0": seconds[0],
        "iteration_seconds_staleness_1": seconds[1],
        "longer_over_staleness_1": longer / seconds[1],
        "iterations_timed": options.iterations - 2,
        "environment": describe_environment(),
    }
    write_json(options.output, result)
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=2))


if __name__ == "__main__":
    main()
