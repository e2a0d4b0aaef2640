"""The records of a whole run: each once, none lost and none doubled."""

from itertools import product
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.config import RunSettings


def keys_found(directory: Path) -> list[tuple[int, int]]:
    """(iteration, row) of every record in a run folder, in order; twice what was recorded twice."""
    keys: list[tuple[int, int]] = []
    for file in (directory / "records").iterdir():
        table = pq.read_table(file, columns=["iteration", "row"])
        keys += zip(table["iteration"].to_pylist(), table["row"].to_pylist(), strict=True)
    return sorted(keys)


def keys_expected(settings: RunSettings) -> list[tuple[int, int]]:
    """The same of a run that nothing happened to."""
    return list(product(range(settings.iterations), range(settings.records_per_iteration)))
