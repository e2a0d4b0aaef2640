"""Rollouts on a cluster that grows from nothing, loses nodes in the middle of an iteration, and shrinks again."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from autoscaling import autoscaling_head
from settings import miniature_settings

from actors.dataset import PromptBatches, rollout_dataset
from actors.fleet import start_fleet
from actors.fleet_state import FleetStats
from actors.journal import start_journal
from actors.weights import WeightTicket, start_weight_store
from pipeline.prompts import SampleBatch, load_train_prompts

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent
MOST_NODES, BATCHES, BATCH_SECONDS = 3, 16, 1.0
PATIENCE_S = 120
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


class SlowRollouts:
    """Takes as long for a batch as it is told, and tells where it was made."""

    async def ready(self) -> bool:
        return True

    async def collect(self, batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        await asyncio.sleep(BATCH_SECONDS)
        node = ray.get_runtime_context().get_node_id()
        return pa.table({"sample": list(batch.samples), "node": [node] * len(batch.samples)})


@dataclass
class Run:
    """A run's rollouts, without a learner."""

    fleet: Any
    store: Any
    dataset: ray.data.Dataset

    def iteration(self, number: int) -> pa.Table:
        ray.get(self.store.publish.remote(number, number, np.zeros(3, dtype=np.float32)))
        return pa.concat_tables(list(self.dataset.iter_batches(batch_size=None, batch_format="pyarrow")))

    def stats(self) -> FleetStats:
        return ray.get(self.fleet.stats.remote())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """One to three workers, each as large as a node, on a cluster that has no node for them yet."""
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), path])
    os.environ["RAY_AUTH_MODE"] = "disabled"
    node = {"CPU": 1, "rollout": 1}
    with autoscaling_head("v2", node, MOST_NODES, idle_timeout_minutes=0.1, **QUICK_HEALTH_CHECKS) as address:
        ray.init(address, logging_level="WARNING", log_to_driver=False)
        settings = miniature_settings(
            tmp_path, rollout={"trajectories": 4 * BATCHES, "batch_size": 4, "max_workers": MOST_NODES}
        )
        store, journal = start_weight_store(), start_journal(tmp_path, settings)
        options = {"num_cpus": 0, "resources": {"rollout": 1}}
        fleet = start_fleet("rollout", SlowRollouts, actor_options=options, max_workers=MOST_NODES)
        source = PromptBatches(settings, load_train_prompts("demo"))
        yield Run(fleet, store, rollout_dataset(settings, source, fleet, store, journal))
        ray.shutdown()
    os.environ["PYTHONPATH"] = path
    del os.environ["RAY_AUTH_MODE"]


def rollout_nodes() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and "rollout" in node["Resources"]]


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def kill_node(node_id: str) -> None:
    """SIGKILL a raylet; its workers die with it."""
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if arguments and arguments[0].endswith("raylet/raylet") and any(node_id in argument for argument in arguments):
            process.kill()
            return
    raise AssertionError(f"no raylet of node {node_id}")


def test_rollouts_follow_the_nodes_and_lose_no_sample(run):
    assert rollout_nodes() == []
    expected = Counter(range(4 * BATCHES))
    with ThreadPoolExecutor(1) as threads:
        # From nothing: the worker that waits brings the first node, the others that `grow` asks for bring theirs, and
        # take work of the iteration that is under way.
        first = threads.submit(run.iteration, 0)
        wait_until(lambda: run.stats().busy == 1)
        assert len(rollout_nodes()) == 1
        ray.get(run.fleet.grow.remote())
        records = first.result(PATIENCE_S)
        assert Counter(record % (4 * BATCHES) for record in records["sample"].to_pylist()) == expected
        assert len(set(records["node"].to_pylist())) > 1, "who joined took no work"
        wait_until(lambda: run.stats().ready == MOST_NODES)
        assert len(rollout_nodes()) == MOST_NODES

        # Down to one in the middle of an iteration, and up again.
        second = threads.submit(run.iteration, 1)
        wait_until(lambda: run.stats().busy == MOST_NODES)
        for node in rollout_nodes()[1:]:
            kill_node(node)
        records = second.result(PATIENCE_S)
        assert Counter(record % (4 * BATCHES) for record in records["sample"].to_pylist()) == expected
        wait_until(lambda: run.stats().ready == MOST_NODES)
        assert run.stats().lost == MOST_NODES - 1

    # A run that ends gives all of them back.
    ray.get(run.fleet.shutdown.remote())
    wait_until(lambda: rollout_nodes() == [])
