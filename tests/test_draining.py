"""Several nodes, of which one will be taken back: who finishes its work, who takes it over, and who is never there."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest
import ray
import ray.data
from eventually import PATIENCE_S, wait_until
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import beside_the_driver, node_of_the_driver
from actors.draining import draining_nodes
from actors.fleet import start_fleet
from actors.leasing import call_leased_sync

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent
DRAIN_ON_NOTICE = TESTS.parent / "deploy" / "drain_on_notice.py"


class Worker:
    """Tells on which node it works."""

    async def ready(self) -> bool:
        return True

    async def work(self) -> str:
        return ray.get_runtime_context().get_node_id()

    async def wait_for(self, file: Path) -> str:
        while not file.exists():
            await asyncio.sleep(0.05)
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


def test_a_worker_on_a_draining_node_finishes_its_call_while_another_takes_its_place(cluster, tmp_path):
    fleet = start_fleet("rollout", Worker, actor_options={"resources": {"spot": 1}})
    node = call_leased_sync(fleet, "work")
    go = tmp_path / "go"
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(call_leased_sync, fleet, "wait_for", go)
        try:
            wait_until(lambda: ray.get(fleet.stats.remote()).busy == 1)
            drain(cluster, node)
            assert call_leased_sync(fleet, "work") != node, "it waited for the old worker, which is still in its call"
        finally:
            go.touch()
        assert under_way.result(PATIENCE_S) == node
    wait_until(lambda: not ((stats := ray.get(fleet.stats.remote())).busy or stats.leases))
    stats = ray.get(fleet.stats.remote())
    assert (stats.drained, stats.restarts, stats.lost, stats.ready, stats.pending) == (1, 1, 0, 1, 0)


def drain(cluster: Cluster, node_id: str) -> None:
    """What a spot notice makes the cluster do."""
    deadline_ms = int((time.time() + 3600) * 1000)
    client = ray._raylet.GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, refusal = client.drain_node(node_id, reason, "spot notice", deadline_ms)
    assert accepted, refusal


class MetadataService(BaseHTTPRequestHandler):
    """What a spot machine of AWS or Google Cloud is told; `end` is when it will be taken back."""

    end: datetime | None = None
    questions = 0

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(HTTPStatus.OK, "a-token")

    def do_GET(self) -> None:
        end = type(self).end
        type(self).questions += 1
        if self.path == "/computeMetadata/v1/instance/preempted":
            assert self.headers["Metadata-Flavor"] == "Google"
            self._answer(HTTPStatus.OK, "TRUE" if end else "FALSE")
        elif self.path == "/latest/meta-data/spot/instance-action" and end:
            assert self.headers["X-aws-ec2-metadata-token"] == "a-token"
            self._answer(HTTPStatus.OK, json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"}))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "")

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata_service() -> Iterator[tuple[str, type[MetadataService]]]:
    class Service(MetadataService):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Service
    server.shutdown()


@pytest.mark.parametrize(("cloud", "least_s", "most_s"), [("aws", 60, 120), ("gcp", 10, 30)])
def test_a_notice_of_the_cloud_drains_the_node_that_it_is_about(cluster, metadata_service, cloud, least_s, most_s):
    address, service = metadata_service
    node = cluster.add_node(num_cpus=1)
    busy = start_worker_on(node.node_id)
    arguments = [cloud, "--node-id", node.node_id, "--service", address]
    with subprocess.Popen([sys.executable, DRAIN_ON_NOTICE, *arguments], env=environment_of(cluster)) as watcher:
        try:
            wait_until(lambda: service.questions > 0)
            assert node.node_id not in draining_nodes()
            service.end = datetime.now(UTC) + timedelta(seconds=120)
            assert watcher.wait(PATIENCE_S) == 0
        finally:
            watcher.kill()
    assert node.node_id in draining_nodes()
    deadline_s = ray._raylet.GcsClient(address=cluster.address).get_draining_nodes()[node.node_id] / 1000
    assert least_s <= deadline_s - time.time() <= most_s
    assert ray.get(busy.work.remote()) == node.node_id
    cluster.remove_node(node)


def start_worker_on(node_id: str) -> ActorHandle[Worker]:
    """A node without work goes as soon as it drains."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    worker = ray.remote(Worker).options(num_cpus=0, scheduling_strategy=there).remote()
    ray.get(worker.ready.remote())
    return worker


def environment_of(cluster: Cluster) -> dict[str, str]:
    return os.environ | {"RAY_ADDRESS": cluster.address}


def test_what_steers_a_run_is_on_the_node_of_its_driver(cluster):
    """Nodes of workers come and go; with an actor on one of them the run would go too."""
    steering = [ray.remote(Worker).options(**beside_the_driver()).remote() for _ in range(6)]
    nodes = ray.get([actor.work.remote() for actor in steering])
    assert set(nodes) == {ray.get_runtime_context().get_node_id()}


def test_light_tasks_stay_on_the_node_of_the_driver(cluster):
    """On others they would keep a node that has no work from being given back, and take records with it if it went."""

    def locate(block: pa.Table) -> pa.Table:
        return pa.table({"node": [ray.get_runtime_context().get_node_id()]})

    numbers = ray.data.from_items([{"id": number} for number in range(6)], override_num_blocks=6)
    located = numbers.map_batches(
        locate, batch_size=None, batch_format="pyarrow", num_cpus=0, label_selector=node_of_the_driver()
    )
    assert {row["node"] for row in located.take_all()} == {ray.get_runtime_context().get_node_id()}


def test_a_node_finds_itself_and_needs_no_cloud_to_leave(cluster):
    """The last test, for the node is the head."""
    node_id = ray.get_runtime_context().get_node_id()
    busy = start_worker_on(node_id)
    subprocess.run([sys.executable, DRAIN_ON_NOTICE, "now"], env=environment_of(cluster), check=True)
    assert node_id in draining_nodes()
    assert ray.get(busy.work.remote()) == node_id
