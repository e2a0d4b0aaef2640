"""What a disturbed run has in common with an undisturbed one: all of it, if nothing was lost."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.chaos.run import AlignJob


def compare(undisturbed: AlignJob, disturbed: AlignJob) -> dict[str, bool]:
    """Whether every iteration is there once, with the same records and, after it, the same adapter bit for bit."""
    expected, found = undisturbed.metrics(), disturbed.metrics()
    records, expected_records = records_by_iteration(disturbed), records_by_iteration(undisturbed)
    return {
        "every_iteration_once": _column(found, "iteration") == _column(expected, "iteration"),
        "same_adapter_after_every_iteration": _column(found, "adapter_sha256") == _column(expected, "adapter_sha256"),
        "same_records": records.keys() == expected_records.keys()
        and all(records[number].equals(table) for number, table in expected_records.items()),
    }


def records_by_iteration(job: AlignJob) -> dict[int, pa.Table]:
    """All records that were kept, with every column, in the order of their rows; twice what was recorded twice."""
    kept = pa.concat_tables(map(pq.read_table, sorted((job.run_directory / "records").iterdir()))).sort_by("row")
    numbers = kept["iteration"].unique().to_pylist()
    return {number: kept.filter(pc.field("iteration") == number).combine_chunks() for number in numbers}


def as_sentences(sameness: dict[str, bool]) -> str:
    """In words; capitals say what does not hold."""
    return (
        f"Every iteration exactly once: {_yes(sameness['every_iteration_once'])}. "
        f"No record lost or doubled: {_yes(sameness['same_records'])}. "
        f"The same adapter, bit for bit, after every iteration: {_yes(sameness['same_adapter_after_every_iteration'])}."
    )


def _column(metrics: list[dict[str, Any]], name: str) -> list[Any]:
    return [line[name] for line in metrics]


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"
