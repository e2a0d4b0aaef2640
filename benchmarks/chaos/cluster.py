"""A cluster of several raylets on this machine, whose nodes can be killed and come back."""

import os
import shutil
import tempfile
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from actors.cluster import FEW_REMEMBERED_TASKS, KEPT_PROCESSES

SHORT_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""A dead node is noticed after a few seconds instead of a quarter of a minute."""


class LocalCluster:
    """A small head, and worker nodes."""

    def __init__(self, worker_nodes: int, cpus_per_node: int, head_cpus: int = 1) -> None:
        """Start it."""
        os.environ.update(SHORT_HEALTH_CHECKS | KEPT_PROCESSES | FEW_REMEMBERED_TASKS)
        self._cpus_per_node = cpus_per_node
        head = {"num_cpus": head_cpus, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        self._folders: list[str] = []
        for _ in range(worker_nodes):
            self.add_node()

    @property
    def address(self) -> str:
        """What RAY_ADDRESS is set to."""
        return str(self._cluster.address)

    def kill_node(self, number: int) -> None:
        """SIGKILL a raylet, which takes its workers along."""
        self._cluster.remove_node(self._nodes.pop(number), allow_graceful=False)

    def add_node(self) -> None:
        """Start one more node, with a folder of its own: else a node that ends takes the others' copies of the code."""
        folder = tempfile.mkdtemp(prefix="ray")  # short: Ray's sockets lie below it
        self._folders.append(folder)
        self._nodes.append(self._cluster.add_node(num_cpus=self._cpus_per_node, temp_dir=folder))

    def nodes_without(self, actor_class: str) -> list[int]:
        """Numbers of the nodes on which no actor of a class lives."""
        raylets = {process.ppid() for process in self.processes(actor_class)}
        return [
            number
            for number, node in enumerate(self._nodes)
            if node.all_processes["raylet"][0].process.pid not in raylets
        ]

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of actors that Ray calls so (`Class`, or `Class.method` in a call), oldest first."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                    found.append(process)
            except psutil.NoSuchProcess:  # it ended since it was listed
                continue
        return sorted(found, key=lambda process: process.create_time())

    def shutdown(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
