"""Pairs of images for off-line methods: read and checked once by Ray Data, and kept in Ray's object store.

This module runs in light Ray Data tasks and imports neither torch nor diffusers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray import ObjectRef
from ray.exceptions import ObjectLostError

from actors.tables import explained_reading, read_table
from pipeline.config import RunSettings
from pipeline.data_files import locate_data
from pipeline.method_settings import PairMethodSettings
from pipeline.preference_pairs import COLUMNS, check_pair_columns, clean_pairs, state_pairs
from pipeline.prompts import SampleBatch, plan_positions

# A rollout fetches the blocks that its pairs lie in: small ones, so that little travels for nothing.
BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class PreferenceData:
    """The usable pairs of a data set.

    Attributes:
        blocks: tables of `preference_pairs.CLEAN_SCHEMA` in the object store, which spills to disk when it is full.
        places: (N, 2) int64, the block of each pair and the row in it.
        statement: source, counts and a hash of the pairs, for the run folder.
    """

    blocks: tuple["ObjectRef[pa.Table]", ...]
    places: NDArray[np.int64]
    statement: dict[str, Any]

    def rows(self, positions: tuple[int, ...]) -> pa.Table:
        """The pairs at `positions`, in that order: prompt, preferred, rejected."""
        found = []
        for block, row in self.places[list(positions)].tolist():
            table = self._block(block)
            # Not a slice, which would travel with the whole block that it is cut from.
            found.append(table.select(["prompt", "preferred", "rejected"]).take([row]))
        return pa.concat_tables(found).combine_chunks()

    def _block(self, number: int) -> pa.Table:
        try:
            table: pa.Table = ray.get(self.blocks[number])
        except ObjectLostError as error:
            raise RuntimeError(
                "pairs of images went with the node that held them; the run is kept, and resumed it reads them anew"
            ) from error
        return table


@dataclass(frozen=True)
class PairBatches:
    """The batches of a run on pairs of images; see `actors.dataset.BatchSource`."""

    settings: RunSettings
    pairs: PreferenceData

    def batch(self, iteration: int, number: int) -> SampleBatch:
        """Batch `number` of an iteration, with its images."""
        samples, positions = plan_positions(
            len(self.pairs.places),
            self.settings.seed,
            iteration,
            number,
            self.settings.samples_per_batch,
            self.settings.batches_per_iteration,
        )
        rows = self.pairs.rows(positions)
        return SampleBatch(iteration, samples, tuple(rows["prompt"].to_pylist()), rows)


def read_preferences(settings: PairMethodSettings) -> PreferenceData:
    """Read a preference data set on the connected cluster and decode every image of it once.

    Raises:
        ValueError: it cannot be read, lacks a column, has more images that do not decode than allowed, or no usable
            pair is left.
    """
    files = locate_data(settings.data)
    check_pair_columns(files)
    with explained_reading(files):
        table = read_table(files, list(COLUMNS), BLOCK_BYTES)
        if settings.max_rows is not None:
            table = table.limit(settings.max_rows)
        cleaned = table.map_batches(clean_pairs, batch_size=None, batch_format="pyarrow").materialize()
        blocks = tuple(cleaned.to_arrow_refs())
        summaries: list[pa.Table] = ray.get([_summarise.remote(block) for block in blocks])
    places = [
        (block, row)
        for block, summary in enumerate(summaries)
        for row, fault in enumerate(summary["fault"].to_pylist())
        if not fault
    ]
    statement = state_pairs(pa.concat_tables(summaries), settings.data, settings.max_unreadable)
    return PreferenceData(blocks, np.array(places, dtype=np.int64), statement)


@ray.remote(num_cpus=0)
def _summarise(block: pa.Table) -> pa.Table:
    """What the driver must know of a block: everything but the images."""
    return block.select(["prompt", "fault", "digest"])
