"""How many workers a fleet has: asked for, given back, withdrawn, and started anew."""

import asyncio
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from eventually import PATIENCE_S, wait_until
from fleet_fixtures import stats
from fleet_workers import Caller, LateWorker, Worker

from actors.fleet import Fleet, start_fleet
from actors.fleet_state import FleetError
from actors.leasing import call_leased_sync

pytest_plugins = ["fleet_fixtures"]


class FirstWorker:
    """The first to come is ready, all others fail."""

    def __init__(self, directory: Path) -> None:
        try:
            (directory / "first").touch(exist_ok=False)
        except FileExistsError:
            raise OSError("no driver on this node") from None

    def ready(self) -> bool:
        return True

    def pid(self) -> int:
        return os.getpid()


def test_workers_beyond_the_minimum_wait_for_grow(ray_session):
    fleet = start_fleet("crew", Worker, actor_options={"num_cpus": 0}, max_workers=3)
    assert ray.get(fleet.wait_ready.remote(1, PATIENCE_S)) == 1
    assert (stats(fleet).ready, stats(fleet).pending) == (1, 0)
    ray.get([fleet.grow.remote(), fleet.grow.remote()])  # the second changes nothing
    assert ray.get(fleet.wait_ready.remote(3, PATIENCE_S)) == 3
    assert stats(fleet).pending == 0
    ray.get(fleet.shutdown.remote())
    ray.kill(fleet)


def test_idle_workers_above_the_minimum_are_given_back_until_calls_wait(start):
    fleet = start(Worker, max_workers=3, idle_timeout_s=1.0, lease_ttl_s=1000.0)
    wait_until(lambda: (stats(fleet).ready, stats(fleet).pending, stats(fleet).given_back) == (1, 0, 2))
    time.sleep(1.5)
    assert stats(fleet).ready == 1, "the minimum stays"
    leases = ray.get([fleet.lease.remote() for _ in range(3)])
    assert len({lease.worker_id for lease in leases}) == 3
    ray.get([fleet.release.remote(lease.lease_id) for lease in leases])
    wait_until(lambda: stats(fleet).given_back == 4)
    assert (stats(fleet).lost, stats(fleet).restarts, stats(fleet).failed_starts) == (0, 0, 0)


def test_workers_that_wait_for_room_are_given_back_when_there_is_nothing_to_do(start, tmp_path):
    fleet = start(LateWorker, tmp_path, max_workers=2, idle_timeout_s=1.0, lease_ttl_s=1000.0)
    lease, waiting = ray.get(fleet.lease.remote()), fleet.lease.remote()
    wait_until(lambda: (stats(fleet).pending, stats(fleet).waiting) == (1, 1))
    before = stats(fleet).given_back  # on a slow machine there was nothing to do for long before the first call
    time.sleep(2.0)
    assert (stats(fleet).pending, stats(fleet).given_back) == (1, before), "somebody waits for it"
    ray.get(fleet.release.remote(lease.lease_id))
    ray.get(waiting)
    wait_until(lambda: (stats(fleet).ready, stats(fleet).pending, stats(fleet).given_back) == (1, 0, before + 1))


def test_a_learner_that_dies_finds_its_place_before_workers_that_wait_for_one(ray_session, caller, tmp_path):
    """The learner, which the fleet has grown for, is one of two actors; the second is its successor."""
    successor = ray.remote(Caller).options(num_cpus=0).remote()
    fleet = start_fleet("crew", LateWorker, actor_args=(tmp_path,), actor_options={"num_cpus": 0}, max_workers=2)
    assert ray.get(fleet.wait_ready.remote()) == 1
    ray.get(fleet.grow.remote(ray.get(caller.own_id.remote())))
    assert (stats(fleet).ready, stats(fleet).pending) == (1, 1)
    ray.kill(caller)
    wait_until(lambda: (stats(fleet).ready, stats(fleet).pending) == (1, 0))
    ray.get(fleet.lease.remote())
    waiting = fleet.lease.remote()
    time.sleep(0.5)
    assert stats(fleet).pending == 0, "whoever calls, the successor goes first"
    ray.get(fleet.grow.remote(ray.get(successor.own_id.remote())))
    (tmp_path / "go").touch()
    assert ray.get(waiting).worker_id
    assert stats(fleet).lost == 0
    ray.get(fleet.shutdown.remote())
    for actor in (fleet, successor):
        ray.kill(actor)


async def grown_fleet(learner: str) -> Fleet:
    """In this process: two workers that are ready, one of them above the minimum, on behalf of a learner."""
    fleet = Fleet("crew", Worker, (), {"num_cpus": 0}, 1, 2, 1, 30.0, math.inf, math.inf, 10.0, 3, run="", journal=None)
    await fleet.start()
    await fleet.grow(learner)
    assert await fleet.wait_ready(2, PATIENCE_S) == 2
    # Both have their places while the learner is known to live.
    await until(lambda: fleet._grower_seen_at > max(worker.ready_at for worker in fleet._pool))
    return fleet


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.05)


def test_a_worker_that_is_lost_beside_the_learner_leaves_its_place_to_the_successor(ray_session, caller):
    async def lose_both() -> None:
        fleet = await grown_fleet(await caller.own_id.remote())
        ray.kill(caller)
        await until(lambda: not fleet._pool.has_grown)
        first, second = (worker.worker_id for worker in fleet._pool)
        await fleet.report_dead(second)
        assert [worker.worker_id for worker in fleet._pool] == [first], "nobody was started in its place"
        await fleet.report_dead(first)
        assert await fleet.wait_ready(1, PATIENCE_S) == 1, "the minimum is kept"
        await fleet.grow("")
        assert await fleet.wait_ready(2, PATIENCE_S) == 2
        await fleet.shutdown()

    asyncio.run(lose_both())


def test_a_successor_that_finds_no_place_is_given_one(ray_session, caller, monkeypatch):
    monkeypatch.setattr("actors.fleet.HOLDER_POLL_S", 0.2)
    monkeypatch.setattr("actors.fleet.SUCCESSOR_PATIENCE_S", 1000.0)

    async def wait_for_a_place() -> None:
        fleet = await grown_fleet(await caller.own_id.remote())
        lease = await fleet.lease()
        ray.kill(caller)
        await until(lambda: not fleet._pool.has_grown)
        await asyncio.sleep(1.0)
        assert len(fleet._pool) == 2, "a successor is given the time to find one"
        monkeypatch.setattr("actors.fleet.SUCCESSOR_PATIENCE_S", 0.0)
        await until(lambda: len(fleet._pool) == 1)
        assert lease.worker_id in fleet._pool, "the one that serves nobody went"
        await fleet.shutdown()

    asyncio.run(wait_for_a_place())


def test_a_node_on_which_nothing_starts_does_not_end_a_fleet_that_serves(start, tmp_path):
    fleet = start(FirstWorker, tmp_path, max_workers=2, max_start_failures=2)
    wait_until(lambda: stats(fleet).failed_starts >= 3)
    assert call_leased_sync(fleet, "pid") and (stats(fleet).ready, stats(fleet).lost) == (1, 0)
    assert "no driver on this node" in stats(fleet).last_error


def test_a_slow_worker_joins_late(start, tmp_path):
    fleet = start(LateWorker, tmp_path, max_workers=2, lease_ttl_s=1000.0)
    assert ray.get(fleet.wait_ready.remote()) == 1, "work starts with the minimum"
    first = call_leased_sync(fleet, "pid")
    assert (stats(fleet).ready, stats(fleet).pending) == (1, 1)
    with pytest.raises(FleetError, match=r"1 of 2 workers ready after 0.2 s, 1 pending \(each asks for .*num_cpus"):
        ray.get(fleet.wait_ready.remote(2, 0.2))
    ray.get(fleet.lease.remote())  # the first worker is busy
    (tmp_path / "go").touch()
    assert call_leased_sync(fleet, "pid") != first
