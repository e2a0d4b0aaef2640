"""Pytest plugin: fleets whose workers reserve no CPU, and an actor that calls them."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from fleet_workers import Caller
from ray.actor import ActorHandle

from actors.cluster import ClusterInfo
from actors.fleet import start_fleet
from actors.fleet_state import FleetStats
from actors.leasing import call_leased


def stats(fleet: ActorHandle) -> FleetStats:
    return ray.get(fleet.stats.remote())


async def all_results(fleet: ActorHandle, count: int, seconds: float) -> list[int]:
    return await asyncio.gather(*(call_leased(fleet, "work", number, seconds) for number in range(count)))


@pytest.fixture
def start(ray_session: ClusterInfo) -> Iterator[Callable[..., ActorHandle]]:
    """`start_fleet` of a name and workers that reserve no CPU; the fleets are shut down after the test."""
    fleets = []

    def start(actor_class: type, *args: Any, **settings: Any) -> ActorHandle:
        fleets.append(start_fleet("crew", actor_class, actor_args=args, actor_options={"num_cpus": 0}, **settings))
        ray.get(fleets[-1].grow.remote())
        return fleets[-1]

    yield start
    for fleet in fleets:
        ray.get(fleet.shutdown.remote())
        ray.kill(fleet)


@pytest.fixture
def caller(ray_session: ClusterInfo) -> Iterator[ActorHandle]:
    actor = ray.remote(Caller).options(num_cpus=0).remote()
    yield actor
    ray.kill(actor)
