"""A head of a Ray cluster on this machine, started and asked by Ray's command line as users do it."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import urllib3
from eventually import PATIENCE_S
from job_runs import REPOSITORY

QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "20",
}
"""Variables with which a cluster takes a node for dead ten seconds after it was killed, as it answers nobody then.

One that is only slow to answer lives on.
"""


class RayHead:
    """Its dashboard's address, and the environment in which the commands of its users run."""

    def __init__(self, address: str, environment: dict[str, str]) -> None:
        self.address = address
        self.environment = environment

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `ray ...` in the folder of the repository to its end."""
        return subprocess.run(
            ["ray", *words], cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`ray` in the background, its output in one pipe."""
        return subprocess.Popen(
            ["ray", *words],
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, path: str, *, token: str | None = None) -> tuple[int, Any]:
        """Status and JSON of the dashboard's answer to who shows the head's token, another one, or none ("")."""
        shown = self.environment["RAY_AUTH_TOKEN"] if token is None else token
        headers = {"Authorization": f"Bearer {shown}"} if shown else {}
        response = urllib3.request("GET", self.address + path, headers=headers, retries=False)
        return response.status, json.loads(response.data) if response.status == 200 else None

    def actors_of(self, job_id: str) -> list[dict[str, Any]]:
        """What the control store knows of the actors of a driver's job."""
        _, answer = self.ask(f"/api/v0/actors?detail=1&filter_keys=job_id&filter_predicates=%3D&filter_values={job_id}")
        return answer["data"]["result"]["result"]


@contextmanager
def ray_head(num_cpus: int) -> Iterator[RayHead]:
    """A head on the loopback address, with ports, a folder and a token of its own; it ends with all its processes."""
    directory = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets lie below it
    gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]]),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
    }
    environment |= documented_variables()
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
    command += [f"--metrics-export-port={metrics}", f"--temp-dir={directory}", f"--object-store-memory={200 * 2**20}"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        head = RayHead(f"http://127.0.0.1:{dashboard}", environment)
        try:
            wait_until_it_answers(head, process, directory / "log")
            yield head
        finally:
            end(process)
    shutil.rmtree(directory, ignore_errors=True)


def documented_variables() -> dict[str, str]:
    """Ray's variables where README starts the head: those of the lines down to `ray start --head` in that block."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^    export RAY_.*\n(?:    .*\n)*?    .*ray start --head$", readme, re.MULTILINE)
    assert block is not None, "README starts no head"
    return dict(re.findall(r"\b(RAY_\w+)=(\S+)", block[0]))


def wait_until_it_answers(head: RayHead, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            if head.ask("/api/jobs/")[0] == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a head and everything that it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, survivors = psutil.wait_procs(family, timeout=5)
    for survivor in survivors:  # Ray's agents outlive a head that is terminated
        survivor.kill()
    process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; held at once, so that no two are the same."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
