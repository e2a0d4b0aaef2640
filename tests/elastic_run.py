"""Rolls out on an autoscaling cluster and writes down what happened; a process has one login to Ray, so it is its own.

python elastic_run.py ADDRESS
"""

import asyncio
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from eventually import PATIENCE_S, wait_until
from settings import miniature_settings

from actors.dataset import PromptBatches, rollout_dataset
from actors.fleet import start_fleet
from actors.fleet_state import FleetStats
from actors.journal import start_journal
from actors.weights import WeightTicket, start_weight_store
from benchmarks.chaos.autoscaling_head import kill_raylets
from pipeline.prompts import SampleBatch, load_train_prompts

MOST_NODES, BATCHES, BATCH_SIZE, BATCH_SECONDS, IDLE_SECONDS = 3, 16, 4, 0.2, 12.0


class HeldRollouts:
    """Ends no batch of an iteration before it may, and tells where each was made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def ready(self) -> bool:
        return True

    async def collect(self, batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        while not (self.directory / f"go-{ticket.iteration}").exists():
            await asyncio.sleep(0.1)
        await asyncio.sleep(BATCH_SECONDS)
        node = ray.get_runtime_context().get_node_id()
        return pa.table({"sample": list(batch.samples), "node": [node] * len(batch.samples)})


@dataclass
class Run:
    """A run's rollouts, without a learner."""

    fleet: Any
    store: Any
    dataset: ray.data.Dataset
    directory: Path

    def iteration(self, number: int) -> pa.Table:
        ray.get(self.store.publish.remote(number, number, np.zeros(3, dtype=np.float32)))
        return pa.concat_tables(list(self.dataset.iter_batches(batch_size=None, batch_format="pyarrow")))

    def may_end(self, number: int) -> None:
        """Its batches have been held until now."""
        (self.directory / f"go-{number}").touch()

    def stats(self) -> FleetStats:
        return ray.get(self.fleet.stats.remote())


def start_run(directory: Path) -> Run:
    """One to three workers, each as large as a node."""
    rollout = {"trajectories": BATCHES * BATCH_SIZE, "batch_size": BATCH_SIZE, "max_workers": MOST_NODES}
    settings = miniature_settings(directory, rollout=rollout)
    store, journal = start_weight_store(), start_journal(directory, settings)
    options = {"num_cpus": 0, "resources": {"rollout": 1}}
    fleet = start_fleet(
        "rollout",
        HeldRollouts,
        actor_args=(directory,),
        actor_options=options,
        max_workers=MOST_NODES,
        idle_timeout_s=IDLE_SECONDS,
    )
    source = PromptBatches(settings, load_train_prompts("demo"))
    return Run(fleet, store, rollout_dataset(settings, source, fleet, store, journal), directory)


def rollout_nodes() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and "rollout" in node["Resources"]]


def roll_out(directory: Path) -> dict[str, Any]:
    """The cluster grows from nothing in the first iteration, loses all nodes but one in the second, and grows again in
    the third, before which idle nodes are given back."""
    facts: dict[str, Any] = {"nodes_before": len(rollout_nodes())}
    run = start_run(directory)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(run.iteration, 0)
        wait_until(lambda: run.stats().busy == 1)
        ray.get(run.fleet.grow.remote())
        wait_until(lambda: run.stats().busy == MOST_NODES)
        facts["nodes_of_the_maximum"] = len(rollout_nodes())
        run.may_end(0)
        records = first.result(PATIENCE_S)
        facts["first_samples"] = sorted(records["sample"].to_pylist())
        facts["nodes_that_took_part"] = len(set(records["node"].to_pylist()))

        second = threads.submit(run.iteration, 1)
        wait_until(lambda: run.stats().busy == MOST_NODES)
        kill_raylets(rollout_nodes()[1:])
        wait_until(lambda: run.stats().lost >= MOST_NODES - 1)  # until its processes end, a killed node could answer
        run.may_end(1)
        facts["second_samples"] = sorted(second.result(PATIENCE_S)["sample"].to_pylist())
        facts["lost"] = run.stats().lost

        wait_until(lambda: (run.stats().ready, run.stats().pending, len(rollout_nodes())) == (1, 0, 1))
        third = threads.submit(run.iteration, 2)
        wait_until(lambda: run.stats().busy == MOST_NODES)
        run.may_end(2)
        facts["third_samples"] = sorted(third.result(PATIENCE_S)["sample"].to_pylist())
    ray.get(run.fleet.shutdown.remote())
    wait_until(lambda: rollout_nodes() == [])
    facts["nodes_after"] = len(rollout_nodes())
    return facts


if __name__ == "__main__":
    ray.init(sys.argv[1], logging_level="WARNING", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        facts = roll_out(Path(folder))
    Path(sys.argv[2]).write_text(json.dumps(facts))
