"""Several nodes, of which one will be taken back: who finishes its work, who takes it over, and who is never there."""

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from actors.cluster import beside_the_driver
from actors.fleet import start_fleet
from actors.leasing import call_leased_sync

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent
PATIENCE_S = 60


class Worker:
    """Tells on which node it works."""

    async def ready(self) -> bool:
        return True

    async def work(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room and two spot nodes."""
    environment = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), environment.get("PYTHONPATH", "")])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, resources={"spot": 1})
        ray.init(cluster.address, logging_level="WARNING", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(environment)


def test_a_worker_on_a_draining_node_finishes_its_call_while_another_takes_its_place(cluster):
    fleet = start_fleet("rollout", Worker, actor_options={"resources": {"spot": 1}})
    node = call_leased_sync(fleet, "work", 0.0)
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(call_leased_sync, fleet, "work", 6.0)
        time.sleep(0.5)  # so that its call is the first one
        drain(cluster, node)
        # The old worker has a free slot in six seconds; the new one, on the other node, is there before.
        assert call_leased_sync(fleet, "work", 0.0) != node
        assert not under_way.done()
        assert under_way.result(PATIENCE_S) == node
    deadline = time.monotonic() + PATIENCE_S
    while (stats := ray.get(fleet.stats.remote())).busy or stats.leases:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (stats.drained, stats.restarts, stats.lost, stats.ready, stats.pending) == (1, 1, 0, 1, 0)


def drain(cluster: Cluster, node_id: str) -> None:
    """What a spot notice makes the cluster do."""
    deadline_ms = int((time.time() + 120) * 1000)
    client = ray._raylet.GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, refusal = client.drain_node(node_id, reason, "spot notice", deadline_ms)
    assert accepted, refusal


def test_what_steers_a_run_is_on_the_node_of_its_driver(cluster):
    """Nodes of workers come and go; with an actor on one of them the run would go too."""
    steering = [ray.remote(Worker).options(**beside_the_driver()).remote() for _ in range(6)]
    nodes = ray.get([actor.work.remote(0.0) for actor in steering])
    assert set(nodes) == {ray.get_runtime_context().get_node_id()}
