"""A worker that Ray's own memory monitor kills, which tells of it in another way than of any other death."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from actors.cluster import start_ray
from actors.fleet import start_fleet
from actors.leasing import call_leased_sync

pytestmark = pytest.mark.slow

# What other programs may take meanwhile before Ray thinks that its workers did, and what the worker takes.
ROOM_BYTES, GREED_BYTES = 4 * 2**30, 6 * 2**30


class GreedyWorker:
    """Takes far too much memory the first time that it is called."""

    async def ready(self) -> bool:
        return True

    async def work(self, marker: str) -> int:
        if not Path(marker).exists():
            Path(marker).touch()
            hoard = bytearray(GREED_BYTES)
            for page in range(0, GREED_BYTES, 4096):
                hoard[page] = 1
        return os.getpid()


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray that kills once this machine has `ROOM_BYTES` less than now."""
    memory = psutil.virtual_memory()
    if memory.available < GREED_BYTES + ROOM_BYTES // 2:
        pytest.skip(f"needs {GREED_BYTES + ROOM_BYTES // 2} bytes of free memory")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    threshold = (memory.total - memory.available + ROOM_BYTES) / memory.total
    start_ray(
        num_cpus=2,
        object_store_memory=100 * 2**20,
        _system_config={"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 50},
    )
    yield
    ray.shutdown()


def test_its_call_is_made_again_on_the_worker_that_takes_its_place(short_of_memory, tmp_path):
    fleet = start_fleet("greedy", GreedyWorker)
    first = ray.get(fleet.stats.remote())
    assert psutil.pid_exists(call_leased_sync(fleet, "work", str(tmp_path / "called")))
    stats = ray.get(fleet.stats.remote())
    assert (first.lost, stats.lost, stats.restarts, stats.failed_starts) == (0, 1, 1, 0)
    assert "low on memory" in stats.last_error
