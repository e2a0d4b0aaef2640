"""RolloutWorker on Ray: its batches overlap, keep their own weights, and come out as they would alone."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from eventually import PATIENCE_S
from in_process import load_policy
from numpy.typing import NDArray
from scorers import ProjectionScorer
from settings import miniature_settings

from actors.cluster import ClusterInfo
from actors.fleet import start_fleet
from actors.leasing import call_leased_sync
from actors.rollout import RolloutWorker
from actors.weights import WeightChecksumError, WeightStore, WeightTicket
from pipeline.adapter import flatten_adapter, load_flat_adapter
from pipeline.config import RunSettings
from pipeline.methods.tailorpo import collect
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch

pytest_plugins = ["model_fixtures"]

SCORE_CALLS = 3  # a batch: two trained steps and the finished images
SLOW_SECONDS = 0.2


class WatchedReward:
    """Notes whose calls it serves, and answers only when as many calls have come together as it is told."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.expect(1)

    def ready(self) -> bool:
        return True

    def expect(self, together: int) -> None:
        self.prompts: list[str] = []
        self.barrier = threading.Barrier(together, timeout=PATIENCE_S)

    def history(self) -> list[str]:
        return self.prompts

    def score(self, latents: NDArray[np.float32], prompts: list[str], timestep: int) -> NDArray[np.float32]:
        self.prompts.append(prompts[0])
        self.barrier.wait()
        time.sleep(SLOW_SECONDS)
        return asyncio.run(ProjectionScorer().score(torch.from_numpy(np.array(latents)), prompts, timestep)).numpy()


@dataclass
class Rollouts:
    settings: RunSettings
    worker: Any
    reward_fleet: Any
    tickets: list[WeightTicket]
    adapters: list[NDArray[np.float32]]

    def expect(self, together: int) -> None:
        call_leased_sync(self.reward_fleet, "expect", together)

    def scored_prompts(self) -> list[str]:
        return call_leased_sync(self.reward_fleet, "history")

    def alone(self, batch: SampleBatch, version: int) -> pa.Table:
        """The batch's records, made in this process and by itself."""
        policy = self.policy(version)
        method, seed = self.settings.method, self.settings.seed
        return asyncio.run(collect(policy, ProjectionScorer(), batch, method, seed, 1.0, version))

    def policy(self, version: int) -> Policy:
        policy = load_policy(self.settings)
        policy.freeze()
        load_flat_adapter(policy, self.adapters[version])
        return policy


@pytest.fixture(scope="module")
def rollouts(ray_session: ClusterInfo, miniature_model: Path) -> Iterator[Rollouts]:
    """One worker, one watched reward, and two versions of the weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = miniature_settings(miniature_model)
    fleet = start_fleet(
        "reward", WatchedReward, actor_options={"num_cpus": 0, "max_concurrency": 4}, calls_per_worker=4
    )
    worker: Any = ray.remote(RolloutWorker).options(num_cpus=0).remote(settings, fleet)
    base = flatten_adapter(load_policy(settings))
    adapters = [base, base + np.random.default_rng(0).normal(0, 0.1, base.shape).astype(np.float32)]
    store, tickets = WeightStore(), []
    for version, adapter in enumerate(adapters):
        store.publish(version, version, adapter)
        tickets.append(store.current())
    yield Rollouts(settings, worker, fleet, tickets, adapters)
    ray.get(fleet.shutdown.remote())
    torch.set_num_threads(threads)


def batch_of(*prompts: str, first: int = 0) -> SampleBatch:
    return SampleBatch(0, tuple(range(first, first + len(prompts))), prompts)


def test_a_worker_keeps_two_batches_in_flight(rollouts):
    """The reward answers only two calls at once, so a worker that waits for one batch would wait for ever."""
    rollouts.expect(together=2)
    batches = batch_of("a red circle", "a blue star"), batch_of("a green ring", "a white square", first=2)
    calls = [rollouts.worker.collect.remote(batch, rollouts.tickets[1]) for batch in batches]
    tables = ray.get(calls, timeout=PATIENCE_S)
    order = rollouts.scored_prompts()
    assert [set(order[turn : turn + 2]) for turn in range(0, len(order), 2)] == [
        {"a red circle", "a green ring"}
    ] * SCORE_CALLS
    for batch, table in zip(batches, tables, strict=True):
        assert table.equals(rollouts.alone(batch, version=1))


def test_a_batch_with_other_weights_waits_for_those_in_flight(rollouts):
    rollouts.expect(together=1)
    batches = [batch_of(prompt, first=sample) for sample, prompt in enumerate(("a red circle", "a blue star"))]
    calls = [
        rollouts.worker.collect.remote(batch, ticket) for batch, ticket in zip(batches, rollouts.tickets, strict=True)
    ]
    tables = ray.get(calls, timeout=PATIENCE_S)
    # Which of two calls an asynchronous actor serves first is open; that neither disturbs the other is not.
    red, blue = ["a red circle"] * SCORE_CALLS, ["a blue star"] * SCORE_CALLS
    assert rollouts.scored_prompts() in (red + blue, blue + red)
    for version, (batch, table) in enumerate(zip(batches, tables, strict=True)):
        assert set(table["policy_version"].to_pylist()) == {version}
        assert table.equals(rollouts.alone(batch, version))


def test_damaged_weights_are_refused_and_the_worker_goes_on(rollouts):
    batch = batch_of("a red circle")
    damaged = dataclasses.replace(rollouts.tickets[0], checksum="0" * 64)
    with pytest.raises(WeightChecksumError, match="corrupted"):
        ray.get(rollouts.worker.generate.remote(batch, damaged))
    assert ray.get(rollouts.worker.generate.remote(batch, rollouts.tickets[0])).shape == (1, 4, 8, 8)


def test_the_reference_is_drawn_without_the_adapter(rollouts):
    batch = batch_of("a red circle", "a blue star")
    reference = ray.get(rollouts.worker.generate_reference.remote(batch))
    untrained, aligned = (ray.get(rollouts.worker.generate.remote(batch, ticket)) for ticket in rollouts.tickets)
    # LoRA's B is zero before training, so version 0 draws what the base model draws.
    assert np.array_equal(untrained, reference) and reference.dtype == np.float32
    assert not np.array_equal(aligned, reference)
    assert np.array_equal(ray.get(rollouts.worker.generate_reference.remote(batch)), reference)
