"""Fixtures shared by all test modules."""

import gc
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.update(
    # Ray looks at the mode once in a process and at its environment for each cluster: they must agree from the start.
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    # At Ray's own niceness of 15 workers have next to no time beside the tests of another process on the same cores.
    RAY_worker_niceness="0",
    # Processes start slowly on such cores too; Ray gives up on a worker after a minute, on a head after twenty seconds.
    RAY_worker_register_timeout_seconds="600",
    RAY_gcs_server_port_wait_time_s="300",
)

from actors.cluster import ClusterInfo, connect, disconnect

TESTS = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that of several processes none is left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What the modules themselves are made of stays; looking through it for garbage after each takes seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def environment_variables() -> Iterator[None]:
    """What a test, or a job that it calls, sets in this process's environment ends with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True, scope="module")
def no_handle_outlives_its_ray() -> Iterator[None]:
    """Drop what a module's tests left in cycles while no Ray runs.

    The actors of one Ray have the ids of those of the next: a handle that is dropped later would end another's actor.
    """
    yield
    gc.collect()


@pytest.fixture(scope="module")
def ray_session() -> Iterator[ClusterInfo]:
    """A local Ray of 8 or more logical CPUs, shared by the tests of a module and stopped after them.

    Its workers find this repository's packages and the actor classes that test modules define.
    """
    environment = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), environment.get("PYTHONPATH", "")])
    os.environ.pop("RAY_ADDRESS", None)
    info = connect(cpus_asked=6)
    assert info.mode == "started"
    yield info
    disconnect(info)
    os.environ.clear()
    os.environ.update(environment)
