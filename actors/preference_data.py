"""Pairs of images for off-line methods: read and checked once by Ray Data, and kept in Ray's object store.

This module runs in light Ray Data tasks and imports neither torch nor diffusers.
"""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from actors.tables import explained_reading, read_table
from pipeline.config import RunSettings
from pipeline.data_files import locate_data
from pipeline.method_settings import DiffusionDPOSettings
from pipeline.preference_pairs import COLUMNS, UNREADABLE, check_pair_columns, clean_pairs
from pipeline.prompts import SampleBatch, plan_positions

logger = logging.getLogger(__name__)

# A rollout fetches the blocks that its pairs lie in: small ones, so that little travels for nothing.
BLOCK_BYTES = 8 * 2**20

# Faulty pairs that a message names.
NAMED_FAULTS = 5


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
            table: pa.Table = ray.get(self.blocks[block])
            found.append(table.slice(row, 1).select(["prompt", "preferred", "rejected"]))
        return pa.concat_tables(found).combine_chunks()


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


def read_preferences(settings: DiffusionDPOSettings) -> PreferenceData:
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
    statement = _statement(pa.concat_tables(summaries), settings)
    return PreferenceData(blocks, np.array(places, dtype=np.int64), statement)


@ray.remote(num_cpus=0)
def _summarise(block: pa.Table) -> pa.Table:
    """What the driver must know of a block: everything but the images."""
    return block.select(["prompt", "fault", "digest"])


def _statement(rows: pa.Table, settings: DiffusionDPOSettings) -> dict[str, Any]:
    """What became of the rows of a data set, in order.

    Raises:
        ValueError: too many images do not decode, or no pair is left.
    """
    faults = rows["fault"].to_pylist()
    counts = Counter(fault.split(" ")[0] for fault in faults if fault)
    unreadable = [
        f"row {number} ({prompt!r}), {fault.removeprefix(UNREADABLE).strip()}"
        for number, (prompt, fault) in enumerate(zip(rows["prompt"].to_pylist(), faults, strict=True))
        if fault.startswith(UNREADABLE)
    ]
    named = "; ".join(unreadable[:NAMED_FAULTS]) + ("; ..." if len(unreadable) > NAMED_FAULTS else "")
    if len(unreadable) > settings.max_unreadable:
        raise ValueError(
            f"{len(unreadable)} pairs of {settings.data!r} have an image that does not decode, more than "
            f"method.max_unreadable={settings.max_unreadable}: {named}; repair the data set, or raise that limit to "
            "leave them out"
        )
    usable = len(faults) - sum(counts.values())
    if not usable:
        told = ", ".join(f"{count} {fault}" for fault, count in counts.items()) or "no rows at all"
        raise ValueError(f"{settings.data!r} has no pair to learn from: {told}; choose another data set")
    if unreadable:
        logger.warning("%d of %d pairs are left out, since they do not decode: %s", len(unreadable), len(faults), named)
    digests = b"".join(digest for digest in rows["digest"].to_pylist() if digest)
    return {
        "source": settings.data,
        "rows": len(faults),
        "pairs": usable,
        "left_out": dict(counts),
        "unreadable": unreadable,
        "sha256": hashlib.sha256(digests).hexdigest(),
    }
