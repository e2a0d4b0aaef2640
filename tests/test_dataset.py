"""The Ray Data plan: every batch of the iteration at hand is rolled out once, and no record is lost on its way."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from settings import miniature_settings

from actors.cluster import ClusterInfo
from actors.dataset import PromptBatches, rollout_dataset
from actors.fleet import start_fleet
from actors.journal import start_journal
from actors.weights import WeightTicket, start_weight_store
from pipeline.config import RunSettings
from pipeline.prompts import SampleBatch, load_train_prompts, plan_batch
from pipeline.step_preferences import StepPreferences, records_table

LATENT_SHAPE = (4, 8, 8)
ROWS = 24


class CannedRollouts:
    """Makes the records of a batch without a model; every third pair is a tie."""

    async def ready(self) -> bool:
        return True

    async def collect(self, batch: SampleBatch, ticket: WeightTicket) -> pa.Table:
        if "forbidden" in batch.prompts:
            raise LookupError("nobody can draw that")
        if "cancelled" in batch.prompts:
            asyncio.current_task().cancel()  # as Ray does when it cancels a call
            await asyncio.sleep(1)
        steps = [self._preferences(step, batch) for step in (0, 2)]
        return records_table(steps, batch, torch.zeros(len(batch.samples)), ticket.version)

    def _preferences(self, step: int, batch: SampleBatch) -> StepPreferences:
        latents = torch.tensor(batch.samples, dtype=torch.float32)[:, None, None, None].expand(-1, *LATENT_SHAPE)
        scores = torch.zeros(len(batch.samples))
        tie = torch.tensor([sample % 3 == 0 for sample in batch.samples])
        return StepPreferences(
            step, latents, latents + 1, latents, latents, scores, scores, scores, scores, scores, tie, None, None
        )


@dataclass
class Plan:
    settings: RunSettings
    prompts: list[str]
    fleet: Any
    store: Any
    journal: Any

    def dataset(self, prompts: list[str] | None = None) -> ray.data.Dataset:
        source = PromptBatches(self.settings, prompts or self.prompts)
        return rollout_dataset(self.settings, source, self.fleet, self.store, self.journal)


@pytest.fixture(scope="module")
def plan(ray_session: ClusterInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """Three batches of four samples, two trained steps: 24 records, on two workers."""
    rollout = {"trajectories": 12, "batch_size": 4, "min_workers": 2, "max_workers": 2}
    settings = miniature_settings(tmp_path_factory.getbasetemp(), rollout=rollout)
    fleet = start_fleet(
        "rollout", CannedRollouts, actor_options={"num_cpus": 0}, min_workers=2, max_workers=2, calls_per_worker=2
    )
    store, journal = start_weight_store(), start_journal(tmp_path_factory.mktemp("journal"), settings)
    yield Plan(settings, load_train_prompts("demo"), fleet, store, journal)
    ray.get(fleet.shutdown.remote())


def publish(plan: Plan, iteration: int) -> None:
    ray.get(plan.store.publish.remote(iteration, iteration, np.zeros(3, dtype=np.float32)))


def read(shard: Any) -> pa.Table:
    return pa.concat_tables(list(shard.iter_batches(batch_size=None, batch_format="pyarrow")))


def test_each_execution_makes_the_iteration_that_the_store_has_begun(plan):
    dataset = plan.dataset()
    for iteration in (0, 1):
        publish(plan, iteration)
        table = read(dataset)
        assert table["row"].to_pylist() == [
            sample * 2 + step for batch in range(3) for step in (0, 1) for sample in range(batch * 4, batch * 4 + 4)
        ]
        assert set(table["iteration"].to_pylist()) == set(table["policy_version"].to_pylist()) == {iteration}
        batches = [plan_batch(plan.prompts, plan.settings.seed, iteration, number, 4, 3) for number in range(3)]
        prompt_of_sample = {s: p for batch in batches for s, p in zip(batch.samples, batch.prompts, strict=True)}
        found = dict(zip(table["sample"].to_pylist(), table["prompt"].to_pylist(), strict=True))
        assert found == prompt_of_sample


@pytest.mark.parametrize("workers", [1, 2])
def test_a_split_between_learner_workers_loses_no_record(plan, workers):
    publish(plan, 2)
    shards = plan.dataset().streaming_split(workers, equal=True)
    for _ in range(2):  # the executions of two iterations
        with ThreadPoolExecutor(workers) as pool:
            tables = list(pool.map(read, shards))
        assert [len(table) for table in tables] == [ROWS // workers] * workers
        together = pa.concat_tables(tables)
        assert sorted(together["row"].to_pylist()) == list(range(ROWS))
        assert sum(together["tie"].to_pylist()) == 2 * len([sample for sample in range(12) if sample % 3 == 0])


def test_rollouts_find_a_place_where_actors_have_reserved_every_cpu(plan):
    holder = ray.remote(CannedRollouts).options(num_cpus=ray.available_resources()["CPU"]).remote()
    ray.get(holder.ready.remote())
    publish(plan, 2)
    (shard,) = plan.dataset().streaming_split(1, equal=True)
    assert len(read(shard)) == ROWS
    ray.kill(holder)


def test_latents_travel_unchanged(plan):
    publish(plan, 3)
    table = read(plan.dataset()).combine_chunks()
    latents = table["winner"].chunk(0).to_numpy_ndarray()
    assert latents.shape == (ROWS, *LATENT_SHAPE) and latents.dtype == np.float32
    assert np.array_equal(latents[:, 0, 0, 0], np.array(table["sample"].to_pylist()) + 1)


def test_a_failed_rollout_ends_the_execution_and_leaves_its_reason(plan):
    publish(plan, 4)
    with pytest.raises(ray.exceptions.RayError):
        read(plan.dataset(prompts=["forbidden"]))
    note = ray.get(plan.journal.noted_failures.remote())[0]
    assert note.reason == "LookupError: nobody can draw that" and note.kinds[:2] == ("LookupError", "Exception")
    call, batch = note.where
    assert call.startswith("in collect on rollout-") and batch.endswith("of iteration 4, with policy version 4")


def test_a_cancelled_rollout_is_no_failure_of_the_run(plan):
    """Ray cancels what an execution has under way when the learner that it was for is lost."""
    publish(plan, 5)
    noted = len(ray.get(plan.journal.noted_failures.remote()))
    with pytest.raises(ray.exceptions.RayError):
        read(plan.dataset(prompts=["cancelled"]))
    assert len(ray.get(plan.journal.noted_failures.remote())) == noted
