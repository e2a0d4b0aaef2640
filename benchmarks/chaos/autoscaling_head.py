"""An autoscaling cluster on this machine: Ray's own autoscaler, and a fake cloud whose nodes are raylets."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray._private.services

from actors.cluster import KEPT_PROCESSES

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD_NODE_ID = "f" * 51 + "00000"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@contextmanager
def autoscaling_head(
    version: str,
    worker: Mapping[str, float],
    max_workers: int,
    idle_timeout_minutes: float = 1.0,
    head_cpus: int = 1,
    **variables: str,
) -> Iterator[str]:
    """Address of a head that starts up to `max_workers` nodes with the resources `worker` on demand.

    Args:
        version: v1 or v2, of the autoscaler.
        idle_timeout_minutes: how long a node has nothing to do before it is ended.
        head_cpus: what the head itself has room for.
        variables: of the environment of all nodes.
    """
    directory = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets lie below it
    address = f"{ray._private.services.get_node_ip_address()}:{free_port()}"
    environment = os.environ | KEPT_PROCESSES | variables
    environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    # The autoscaler imports the fake cloud.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
    if version == "v2":
        environment |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID}
        environment["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = HEAD_NODE_ID
    configuration = directory / "autoscaling.json"
    configuration.write_text(
        json.dumps(_configuration(directory, address, worker, max_workers, idle_timeout_minutes, head_cpus))
    )
    command = ["ray", "start", "--head", "--block", f"--port={address.split(':')[1]}", f"--temp-dir={directory}"]
    command += [f"--num-cpus={head_cpus}", "--include-dashboard=false", f"--autoscaling-config={configuration}"]
    with (directory / "log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            yield address
        finally:
            family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
            head.terminate()
            _, survivors = psutil.wait_procs(family, timeout=5)
            for process in survivors:  # Ray's agents outlive a head that is terminated
                process.kill()
            shutil.rmtree(directory, ignore_errors=True)


def kill_raylets(node_ids: list[str]) -> None:
    """SIGKILL nodes of this machine that are still there; their workers die with them."""
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if arguments and arguments[0].endswith("raylet/raylet") and any(n in a for n in node_ids for a in arguments):
            process.kill()


def _configuration(
    directory: Path,
    address: str,
    worker: Mapping[str, float],
    max_workers: int,
    idle_timeout_minutes: float,
    head_cpus: int,
) -> dict[str, Any]:
    provider = {
        "type": "external",
        "module": "benchmarks.chaos.fake_cloud.FakeCloud",
        "folder": str(directory),
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": address,
        "launch_multiple": True,
        "head_node_id": HEAD_NODE_ID,
    }
    node_types = {
        "ray.head.default": {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": max_workers},
    }
    commands = ["", "head_", "worker_"]
    return {
        "cluster_name": "fake",
        "max_workers": max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_timeout_minutes,
        "provider": provider,
        "available_node_types": node_types,
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        **{f"{who}setup_commands": [] for who in commands},
        **{f"{who}start_ray_commands": [] for who in commands[1:]},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
