"""The files of a data set and its columns, on this machine or on the Hugging Face hub, seen before Ray starts."""

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
from httpx2 import HTTPError
from huggingface_hub import HfFileSystem

HUB = "hf://"

# The hub keeps a copy of its data sets there, whatever format they were uploaded in.
CONVERTED = "refs/convert/parquet"

FORMATS = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
    ".json": "JSON",
}
"""Ending of a file's name -> its format."""

# The name that the one column of a JSON list of plain strings gets.
LIST_COLUMN = "prompt"


@dataclass(frozen=True)
class DataFiles:
    """The files of one data set, all of one format.

    Attributes:
        source: how the configuration names them.
        format: one of `FORMATS`.
        paths: where they lie, in order.
        filesystem: the hub's; None for this machine's.
    """

    source: str
    format: str
    paths: tuple[str, ...]
    filesystem: HfFileSystem | None


def locate_data(source: str) -> DataFiles:
    """Find the files of a file, directory, glob, hub id or hf:// path; none is read.

    Raises:
        ValueError: there are none, they are of several formats or of none that is known, or the hub cannot be reached;
            what to give instead.
    """
    on_hub = source.startswith(HUB) or is_hub_id(source)
    filesystem = HfFileSystem() if on_hub else None
    found = _hub_files(source, filesystem) if filesystem else _local_files(source)
    paths = tuple(path for path in found if Path(path).suffix.lower() in FORMATS)
    # save_to_disk writes JSON beside the rows, which describes them.
    if any(path.endswith(".arrow") for path in found) and all(path.endswith(".json") for path in paths):
        folder = str(Path(source).parent) if Path(source).is_file() else source
        raise ValueError(
            f"{source!r} holds .arrow files, as Dataset.save_to_disk writes them; write them anew, once, by "
            f'`datasets.load_from_disk({folder!r}).to_parquet("data.parquet")`, of one split, and give data.parquet'
        )
    if not paths:
        raise ValueError(f"{source!r} holds no file that ends in {', '.join(FORMATS)}; give one, or a folder of them")
    formats = sorted({FORMATS[Path(path).suffix.lower()] for path in paths})
    if len(formats) > 1:
        raise ValueError(
            f"{source!r} holds files of several formats ({', '.join(formats)}); choose those of one by a pattern such "
            f"as {source.rstrip('/')}/*{Path(paths[0]).suffix}"
        )
    return DataFiles(source, formats[0], paths, filesystem)


def is_hub_id(source: str) -> bool:
    """Whether `source` can only mean owner/name on the hub: it has that form, and there is no folder `owner` here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not Path(source).parent.is_dir()


def columns_of(files: DataFiles, path: str) -> dict[str, pa.DataType]:
    """Names and types of the columns of one of a data set's files.

    Raises:
        ValueError: the file is not what its name says.
    """
    try:
        schema = _read_schema(files, path)
    except (pa.ArrowException, OSError, HTTPError, ValueError) as error:
        raise unreadable(files, str(error), path) from error
    return dict(zip(schema.names, schema.types, strict=True))


def require_columns(files: DataFiles, columns: list[str], fix: str) -> dict[str, pa.DataType]:
    """The `columns_of` the first file, if all of `columns` are in every file; `fix` says what to change.

    Raises:
        ValueError: the columns that are missing and those that there are, or a file that is not what its name says.
    """
    # Of a later file without a column Ray Data would make rows of nulls, without a word.
    found = [columns_of(files, path) for path in files.paths]
    for path, there in zip(files.paths, found, strict=True):
        missing = [column for column in columns if column not in there]
        if missing:
            raise ValueError(f"{path!r} has no column {', '.join(missing)}; its columns are {', '.join(there)}; {fix}")
    return found[0]


def require_text_column(files: DataFiles, column: str, setting: str) -> None:
    """Refuse a data set without this column of text; `setting` is what names the column.

    Raises:
        ValueError: there is no such column, or it holds something else.
    """
    found = require_columns(files, [column], f"set {setting}")
    texts = [name for name, kind in found.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    if column not in texts:
        raise ValueError(
            f"column {column!r} of {files.source!r} holds {found[column]}, not text; set {setting} to one that does: "
            f"{', '.join(texts) or 'there is none'}"
        )


def parse_json(content: bytes) -> pa.Table:
    """A JSON file as a table: a list of objects, or a list of strings, which becomes the column `LIST_COLUMN`.

    Raises:
        ValueError: it is something else.
    """
    values = json.loads(content)
    if not isinstance(values, list) or not values:
        raise ValueError("it holds no list; write a list of strings or of objects, or an object a line as .jsonl")
    if all(isinstance(value, str) for value in values):
        return pa.table({LIST_COLUMN: values})
    if all(isinstance(value, dict) for value in values):
        return pa.Table.from_pylist(values)
    raise ValueError("its list mixes strings, objects or other values; write all alike")


def unreadable(files: DataFiles, reason: str, path: str | None = None) -> ValueError:
    """What to raise when `files`, or the one at `path`, cannot be read."""
    advice = _download_advice(files.source) if files.filesystem else "repair the file or leave it out"
    lines = reason.strip().splitlines() or ["nothing is told of the reason"]
    return ValueError(f"{(path or files.source)!r} cannot be read as {files.format}: {lines[0]}; {advice}")


def csv_options(format_name: str) -> pa.csv.ParseOptions:
    """How cells of CSV or TSV are told apart; a quoted one may hold line breaks."""
    return pa.csv.ParseOptions(delimiter="\t" if format_name == "TSV" else ",", newlines_in_values=True)


def _read_schema(files: DataFiles, path: str) -> pa.Schema:
    if files.format == "JSON":
        content = Path(path).read_bytes() if files.filesystem is None else files.filesystem.cat_file(path)
        return parse_json(content).schema
    layout: Any = {"Parquet": "parquet", "JSON Lines": "json"}.get(files.format)
    if layout is None:
        layout = pa.dataset.CsvFileFormat(parse_options=csv_options(files.format))
    return pa.dataset.dataset(path, format=layout, filesystem=files.filesystem).schema


def _local_files(source: str) -> list[str]:
    place = Path(source)
    if place.is_dir():
        return sorted(str(path) for path in place.rglob("*") if path.is_file())
    # Path.glob takes no absolute pattern.
    found = [source] if place.is_file() else sorted(glob.glob(source, recursive=True))  # noqa: PTH207
    if not found:
        raise ValueError(
            f"there is no {source!r}: give a file, a folder or a pattern of files on this machine, or the id "
            "owner/name of a data set on the hub"
        )
    return found


def _hub_files(source: str, filesystem: HfFileSystem) -> list[str]:
    pattern = source.removeprefix(HUB) if source.startswith(HUB) else f"datasets/{source}@{CONVERTED}/**/*.parquet"
    try:
        found = [str(path) for path in sorted(filesystem.glob(pattern))]
    except (OSError, HTTPError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{source!r} cannot be had from the hub: {error}; {_download_advice(source)}") from error
    if not found:
        raise ValueError(f"the hub has no files {HUB}{pattern}; {_download_advice(source)}")
    if not source.startswith(HUB):
        _refuse_several_splits(source, found)
    return found


def _refuse_several_splits(source: str, paths: list[str]) -> None:
    """Refuse to mix what the authors of a data set keep apart, such as train and test.

    Raises:
        ValueError: the parts, as they are to be named.
    """
    parts = sorted({path.rpartition("/")[0] for path in paths})
    if len(parts) > 1:
        choices = ", ".join(f"{HUB}{part}/*.parquet" for part in parts)
        raise ValueError(f"{source!r} has {len(parts)} parts, which are not to be mixed; name one of them: {choices}")


def _download_advice(source: str) -> str:
    """How to bring what is on the hub to a machine that cannot reach it."""
    if source.startswith(HUB):
        name = "/".join(source.removeprefix(f"{HUB}datasets/").split("@")[0].split("/")[:2])
        return f"run `hf download {name} --repo-type dataset --local-dir DIR` where it can, and give its files in DIR"
    return (
        f"run `hf download {source} --repo-type dataset --revision {CONVERTED} --local-dir DIR` where it can, and give "
        "DIR instead"
    )
