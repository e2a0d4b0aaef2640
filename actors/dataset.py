"""The Ray Data plan of an iteration: batch numbers in, preference records out.

This module runs in light Ray Data tasks and imports neither torch nor diffusers.
"""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data
from ray.data import TaskPoolStrategy
from ray.exceptions import ObjectLostError, TaskCancelledError

from actors.cluster import node_of_the_driver
from actors.leasing import call_leased_sync
from actors.weights import NothingPublishedError
from pipeline.config import RunSettings
from pipeline.failure_report import note_of
from pipeline.prompts import SampleBatch, plan_batch
from pipeline.redacted_errors import errors_without_secrets

# A weight store that was lost is up again after some seconds, and published to at the latest when the learner, if it
# learns meanwhile, asks for records.
WEIGHTS_POLL_S, WEIGHTS_ATTEMPTS = 0.5, 7200


class BatchSource(Protocol):
    """What rollouts are made of: the same batch whenever it is asked for, in whichever process."""

    def batch(self, iteration: int, number: int) -> SampleBatch:
        """Batch `number` of an iteration."""


@dataclass(frozen=True)
class PromptBatches:
    """The batches of a run on prompts."""

    settings: RunSettings
    prompts: list[str]

    def batch(self, iteration: int, number: int) -> SampleBatch:
        """Batch `number` of an iteration."""
        settings = self.settings
        return plan_batch(
            self.prompts,
            settings.seed,
            iteration,
            number,
            settings.samples_per_batch,
            settings.batches_per_iteration,
        )


@dataclass(frozen=True)
class RolloutTask:
    """One batch of the iteration that the weight store has begun, rolled out on whichever worker is free."""

    batches: BatchSource
    rollout_fleet: Any
    store: Any
    journal: Any

    def roll_out(self, block: pa.Table) -> pa.Table:
        """A block holding one batch number, {"id": [n]} -> that batch's records."""
        (number,) = block["id"].to_pylist()
        try:
            for _ in range(WEIGHTS_ATTEMPTS):
                try:
                    return self._collect(number)
                except (ObjectLostError, NothingPublishedError):  # the weight store was lost, and the buffers with it
                    time.sleep(WEIGHTS_POLL_S)
            return self._collect(number)
        except TaskCancelledError:  # the learner that it was for is lost, and the next one asks for the batch anew
            raise
        except Exception as error:
            ray.get(self.journal.note_failure.remote(note_of(error)))
            raise

    @errors_without_secrets()
    def _collect(self, number: int) -> pa.Table:
        ticket = ray.get(self.store.current.remote())
        try:
            return call_leased_sync(self.rollout_fleet, "collect", self.batches.batch(ticket.iteration, number), ticket)
        except Exception as error:
            error.add_note(f"in batch {number} of iteration {ticket.iteration}, with policy version {ticket.version}")
            raise


def rollout_dataset(
    settings: RunSettings, source: BatchSource, rollout_fleet: Any, store: Any, journal: Any
) -> ray.data.Dataset:
    """The lazy plan; each execution makes the records of the iteration that the weight store has begun.

    The models live in the fleet's actors, outside Ray Data, because Ray Data rebuilds its own actor pools at every
    execution.
    """
    rollout = settings.rollout
    batches = settings.batches_per_iteration
    context = ray.data.DataContext.get_current()
    # An execution begins without a budget and refreshes it once a second: with reservations, tasks start 0.5 s apart.
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_options.preserve_order = True
    # Blocks that are made here: to read a range, or the schemas of tables, takes tasks of a CPU each.
    numbers = ray.data.from_items([{"id": number} for number in range(batches)], override_num_blocks=batches)
    # A task only waits for its worker, and must find a place where actors have reserved every CPU; the fleet's leases
    # bound the work. Spread over the nodes, as Ray Data would, tasks and records keep idle ones from being given back.
    return numbers.map_batches(
        RolloutTask(source, rollout_fleet, store, journal).roll_out,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=0,
        label_selector=node_of_the_driver(),
        compute=TaskPoolStrategy(size=min(batches, rollout.max_workers * rollout.batches_in_flight)),
    )
