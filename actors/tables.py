"""Tables read by Ray Data, and its errors said in words of the user's."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import ray.data
from httpx2 import HTTPError
from ray.data import DataContext
from ray.exceptions import RayError, UserCodeException

from actors.failure import root_cause
from pipeline.data_files import DataFiles, csv_options, parse_json, unreadable

RAY_DATA_LOGGER = "ray.data"


def read_table(files: DataFiles, columns: list[str], target_block_bytes: int | None = None) -> ray.data.Dataset:
    """A lazy dataset of some columns of a data set, in the order of its files and rows.

    Call it before the fleets start: with every CPU reserved, Ray Data waits without a word.

    Args:
        columns: which; `pipeline.data_files.require_columns` has seen that they are there.
        target_block_bytes: how large blocks become; Ray Data's own choice by default.
    """
    context = DataContext.get_current().copy()
    # An execution begins without a budget and refreshes it once a second: with reservations, tasks start 0.5 s apart.
    context.op_resource_reservation_enabled = False
    # The newer reader of Parquet lists the files, which are known already, in a process of its own: seconds more.
    context.use_datasource_v2 = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.execution_options.preserve_order = True
    if target_block_bytes is not None:
        context.target_max_block_size = target_block_bytes
    with DataContext.current(context):
        return _read(files).select_columns(columns)


@contextmanager
def explained_reading(files: DataFiles) -> Iterator[None]:
    """Around the execution of `read_table`: what goes wrong there becomes one ValueError, and nothing else is printed.

    Raises:
        ValueError: the data set cannot be read; the message names it, the reason and the fix.
    """
    logger = logging.getLogger(RAY_DATA_LOGGER)
    level = logger.level
    # Ray Data prints the stack of every task and of its own besides raising them.
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (RayError, pa.ArrowException, OSError, HTTPError) as error:
        raise unreadable(files, _reason(error)) from error
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """What a task of Ray Data met.

    Of an error of our own functions Ray Data carries the text alone: that of the cause stands before its own.
    """
    cause = root_cause(error)
    if not isinstance(cause, UserCodeException):
        return str(cause)
    before_it = str(error).split("\n\nThe above exception was the direct cause")[0]
    return before_it.rstrip().splitlines()[-1].partition(": ")[2] or str(cause)


def _read(files: DataFiles) -> ray.data.Dataset:
    paths, filesystem = list(files.paths), files.filesystem
    if files.format == "Parquet":
        return ray.data.read_parquet(paths, filesystem=filesystem)
    if files.format == "JSON Lines":
        # Ray would leave out files whose names end as it does not expect, such as .ndjson.
        return ray.data.read_json(paths, filesystem=filesystem, file_extensions=None)
    if files.format == "JSON":
        contents = ray.data.read_binary_files(paths, filesystem=filesystem)
        return contents.map_batches(_parse_files, batch_size=None, batch_format="pyarrow")
    return ray.data.read_csv(paths, filesystem=filesystem, parse_options=csv_options(files.format))


def _parse_files(block: pa.Table) -> pa.Table:
    """{"bytes": contents of JSON files} -> their rows."""
    return pa.concat_tables([parse_json(content) for content in block["bytes"].to_pylist()], promote_options="default")
