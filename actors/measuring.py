"""Measurements on the base model of a run, by its rollout workers and reward actors."""

import asyncio
from pathlib import Path

import pyarrow as pa
import ray

from actors.crew import Crew, start_crew
from actors.denoising import Probe
from actors.failure import explain_failure
from actors.leasing import call_leased
from actors.prompts import read_prompt_sets
from actors.weights import WeightTicket
from pipeline.adapter import flatten_adapter
from pipeline.config import RunSettings
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch, plan_batch
from pipeline.reward_normaliser import declared_normalisation


def measure_on_base(settings: RunSettings, probe: Probe, samples: int, directory: Path) -> pa.Table:
    """Make a measurement on the base model of a run, on `samples` training prompts, and return its rows in order.

    Raises:
        RunFailedError: an actor or a reward failed; the message is the reason.
    """
    size = settings.samples_per_batch
    assert samples % size == 0, "whole batches"
    prompts, count = read_prompt_sets(settings.prompts).train, samples // size
    batches = [plan_batch(prompts, settings.seed, 0, number, size, count) for number in range(count)]
    directory.mkdir(parents=True, exist_ok=True)
    crew = start_crew(settings, directory)
    try:
        ray.get([fleet.grow.remote() for fleet in (crew.reward_fleet, crew.rollout_fleet)])
        return pa.concat_tables(asyncio.run(_measure(crew, probe, batches, _base_ticket(settings, crew))))
    except Exception as error:  # what a reward raises may be of any class
        raise explain_failure(error, crew.journal, (crew.rollout_fleet, crew.reward_fleet)) from error
    finally:
        crew.dismiss()


async def _measure(crew: Crew, probe: Probe, batches: list[SampleBatch], ticket: WeightTicket) -> list[pa.Table]:
    calls = (call_leased(crew.rollout_fleet, "measure", probe, batch, ticket) for batch in batches)
    return list(await asyncio.gather(*calls))


def _base_ticket(settings: RunSettings, crew: Crew) -> WeightTicket:
    """The adapter as it begins, which is no change of the base model."""
    on_cpu = settings.model.model_copy(update={"device": "cpu", "compile": False})
    adapter = flatten_adapter(Policy.load(on_cpu, settings.lora, settings.sampling, settings.seed))
    ray.get(crew.store.publish.remote(0, 0, adapter, declared_normalisation(settings)))
    ticket: WeightTicket = ray.get(crew.store.current.remote())
    return ticket
