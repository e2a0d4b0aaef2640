"""Do rollouts and learning overlap when rollouts may be one version old?

    python -m benchmarks.overlap [--rollout-seconds 20] [--learn-seconds 15] [--iterations 8]

Whole small runs of `actors.alignment.align`, with checkpoints, journal and all, in which every batch of rollouts and
every iteration's learning also sleep, for as long as GPUs might take. Writes to results/overlap.json what an iteration
takes from end to end with rollout.max_staleness 0 and 1, beside what its rollouts and its learning took alone (sleep
and small networks together) at staleness 0: their sum, and the longer of them, which is the floor; and how much of it
the longer sleep alone is.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from actors.alignment import align
from actors.cluster import connect, disconnect
from actors.crew import cpus_of_all_workers
from actors.inputs import read_inputs
from actors.rollout import RolloutWorker
from actors.training import TrainLoopConfig
from actors.weights import WeightTicket
from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.environment import describe_environment
from pipeline.learning import Learner
from pipeline.progress import ProgressReporter
from pipeline.prompts import SampleBatch
from pipeline.run_folder import METRICS_FILE, write_json

# One batch for each of two workers, which sleeps as long as the iteration's rollouts are to take.
SMALL_RUN = [
    "sampling.num_steps=4",
    "method.trained_steps=[3]",
    "rollout.trajectories=4",
    "rollout.batch_size=2",
    "rollout.batches_in_flight=1",
    "learner.minibatch_size=4",
    "learner.micro_batch_size=4",
    "samples.every=1000000",
    "samples.count=2",
    "evaluation.images=0",
]
# Inherited by every process of a Ray that is started here.
ROLLOUT_SECONDS, LEARN_SECONDS = "OVERLAP_ROLLOUT_SECONDS", "OVERLAP_LEARN_SECONDS"


class SlowRolloutWorker(RolloutWorker):
    """One whose GPU takes as long as it is told."""

    async def collect(self, batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        """Sleep, and roll out."""
        await asyncio.sleep(float(os.environ[ROLLOUT_SECONDS]))
        return await super().collect(batch, ticket)


class SlowLearner(Learner):
    """One whose GPU takes as long as it is told."""

    def learn(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """Sleep, and learn."""
        time.sleep(float(os.environ[LEARN_SECONDS]))
        return super().learn(*arguments, **keywords)


def train_slowly(loop_config: dict[str, TrainLoopConfig]) -> None:
    """The learner's own loop, around a slow learner."""
    from actors.learner import train_loop

    with patch("actors.learner.Learner", SlowLearner):
        train_loop(loop_config["config"])


def run(settings: RunSettings) -> list[dict[str, Any]]:
    """The metrics of every iteration of a whole run."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("actors.crew.RolloutWorker", SlowRolloutWorker),
        patch("actors.training._train_worker", train_slowly),
    ):
        align(settings, read_inputs(settings), Path(folder), ProgressReporter(settings.iterations))
        return [json.loads(line) for line in (Path(folder) / METRICS_FILE).read_text().splitlines()]


def seconds_of_iterations(metrics: list[dict[str, Any]]) -> list[float]:
    """From end to end, without the first, which starts processes, and the last, which begins no other."""
    return np.diff([line["time"] for line in metrics])[:-1].tolist()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollout-seconds", type=float, default=20.0)
    parser.add_argument("--learn-seconds", type=float, default=15.0)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("results/overlap.json"))
    options = parser.parse_args()
    overrides = [*SMALL_RUN, f"iterations={options.iterations}"]
    settings = [
        load_settings(Path("configs/demo.yaml"), [*overrides, f"rollout.max_staleness={staleness}"])
        for staleness in (0, 1)
    ]
    os.environ |= {ROLLOUT_SECONDS: str(options.rollout_seconds), LEARN_SECONDS: str(options.learn_seconds)}
    cluster = connect(cpus_of_all_workers(settings[0]))
    try:
        metrics = [run(one) for one in settings]
    finally:
        disconnect(cluster)
    parts = {name: median(line[name] for line in metrics[0][1:]) for name in ("rollout_seconds", "learn_seconds")}
    apart, together = (median(seconds_of_iterations(lines)) for lines in metrics)
    result = {
        "slept_in_rollouts": options.rollout_seconds,
        "slept_in_learning": options.learn_seconds,
        **parts,
        "sum_seconds": sum(parts.values()),
        "longer_seconds": max(parts.values()),
        "iteration_seconds_staleness_0": apart,
        "iteration_seconds_staleness_1": together,
        "longer_over_staleness_1": max(parts.values()) / together,
        "longer_sleep_over_staleness_1": max(options.rollout_seconds, options.learn_seconds) / together,
        "iterations_timed": options.iterations - 2,
        "overrides": overrides,
        "environment": describe_environment(),
    }
    write_json(options.output, result)
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=2))


if __name__ == "__main__":
    main()
