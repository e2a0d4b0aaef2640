"""Pairs of images of which one is preferred, in the columns of Pick-a-Pic: cleaned, and what is wrong with them."""

import hashlib
import io
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from pipeline.data_files import DataFiles, locate_data, require_columns

logger = logging.getLogger(__name__)

DEMO_PAIRS = Path("runs/demo_pairs")
"""Where `jobs/make_demo_pairs.py` leaves the pairs of the demo world, unless it is told otherwise."""

CAPTION, FIRST, SECOND, LABEL = "caption", "jpg_0", "jpg_1", "label_0"
COLUMNS = (CAPTION, FIRST, SECOND, LABEL)

UNREADABLE = "unreadable"
TIE, UNLABELLED, UNCAPTIONED = "tie", "unlabelled", "uncaptioned"

# Faulty pairs that a message names.
NAMED_FAULTS = 5

CLEAN_SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.string()),
        pa.field("preferred", pa.large_binary()),
        pa.field("rejected", pa.large_binary()),
        # Why the pair is left out; empty where it is not. What is unreadable is followed by the column and the reason.
        pa.field("fault", pa.string()),
        pa.field("digest", pa.binary()),
    ]
)


def locate_pairs(source: str) -> DataFiles:
    """`locate_data` of preference pairs.

    Raises:
        ValueError: as `locate_data`; or pairs of the demo's are meant, and have not been made.
    """
    # Where there is no folder `runs` yet, their path has the form of a hub's id, and the hub would be blamed.
    place = Path(source)
    if place.parent == DEMO_PAIRS.parent and not any(place.parent.glob(place.name)):
        raise ValueError(
            f"there is nothing at {source!r}, where preference pairs are to be; the demo's are made once by "
            "`python jobs/make_demo_pairs.py`, those that a reward prefers by "
            f"`python jobs/make_demo_pairs.py --reward NAME --output {source}`"
        )
    return locate_data(source)


def check_pair_columns(files: DataFiles) -> None:
    """Refuse a data set that is no Parquet, or lacks a column of Pick-a-Pic's.

    Raises:
        ValueError: which columns are missing, and which there are.
    """
    if files.format != "Parquet":
        raise ValueError(
            f"method.data {files.source!r} holds {files.format} files; pairs of images are read as Parquet"
        )
    fix = f"rename its columns so that method.data has {', '.join(COLUMNS)}, as Pick-a-Pic has them"
    found = require_columns(files, list(COLUMNS), fix)
    for column in (FIRST, SECOND):
        if not _holds_bytes(found[column]):
            raise ValueError(
                f"column {column} of {files.source!r} holds {found[column]}, not the bytes of encoded images; write "
                "each image's file content into it"
            )


def clean_pairs(table: pa.Table) -> pa.Table:
    """Rows of a preference data set -> as many rows of `CLEAN_SCHEMA`; the images of a faulty one are dropped.

    Raises:
        ValueError: a label that is none of 1 (the first image is preferred), 0 (the second), 0.5 (neither) and null.
    """
    captions, labels = table[CAPTION].to_pylist(), table[LABEL].to_pylist()
    firsts, seconds = _image_bytes(table[FIRST]), _image_bytes(table[SECOND])
    rows = [_clean_row(*values) for values in zip(captions, firsts, seconds, labels, strict=True)]
    return pa.Table.from_pylist(rows, schema=CLEAN_SCHEMA)


def state_pairs(rows: pa.Table, source: str, max_unreadable: int) -> dict[str, Any]:
    """What became of the rows of the data set `source`: counts, what does not decode, and a hash of the usable pairs.

    Args:
        rows: prompt, fault and digest of `clean_pairs`, of all rows in order.
        max_unreadable: how many pairs may have an image that does not decode.

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
    if len(unreadable) > max_unreadable:
        raise ValueError(
            f"{len(unreadable)} pairs of {source!r} have an image that does not decode, more than "
            f"method.max_unreadable={max_unreadable}: {named}; repair the data set, or raise that limit to "
            "leave them out"
        )
    usable = len(faults) - sum(counts.values())
    if not usable:
        told = ", ".join(f"{count} {fault}" for fault, count in counts.items()) or "no rows at all"
        raise ValueError(f"{source!r} has no pair to learn from: {told}; choose another data set")
    if unreadable:
        logger.warning("%d of %d pairs are left out, since they do not decode: %s", len(unreadable), len(faults), named)
    digests = b"".join(digest for digest in rows["digest"].to_pylist() if digest)
    return {
        "source": source,
        "rows": len(faults),
        "pairs": usable,
        "left_out": dict(counts),
        "unreadable": unreadable,
        "sha256": hashlib.sha256(digests).hexdigest(),
    }


def decode_image(content: bytes) -> Image.Image:
    """The RGB image of a file's content.

    Raises:
        OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError: it does not decode.
    """
    return Image.open(io.BytesIO(content)).convert("RGB")


def _clean_row(caption: str | None, first: bytes | None, second: bytes | None, label: float | None) -> dict[str, Any]:
    prompt = " ".join((caption or "").split())
    fault = _fault_of(prompt, label) or _fault_of_image(FIRST, first) or _fault_of_image(SECOND, second)
    row: dict[str, Any] = {"prompt": prompt, "fault": fault}
    if not fault:
        assert first is not None and second is not None, "an image that is missing is unreadable"
        preferred, rejected = (first, second) if label == 1 else (second, first)
        digest = hashlib.sha256(b"\0".join([prompt.encode(), preferred, rejected])).digest()
        row |= {"preferred": preferred, "rejected": rejected, "digest": digest}
    return row


def _fault_of(prompt: str, label: float | None) -> str:
    if label is None or label == 0.5:
        return UNLABELLED if label is None else TIE
    if label not in (0, 1):
        raise ValueError(f"{LABEL} is {label}; it must be 1, 0, 0.5 for a tie, or null")
    return "" if prompt else UNCAPTIONED


def _fault_of_image(column: str, content: bytes | None) -> str:
    if content is None:
        return f"{UNREADABLE} {column}: it is missing"
    try:
        decode_image(content)
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # The text of an unidentified image holds the address of a buffer.
        return f"{UNREADABLE} {column}: {str(error).split(' <')[0]}"
    return ""


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    """Encoded images, be they plain bytes or, as the hub's image columns are, bytes beside a path."""
    values = column.to_pylist()
    return [value.get("bytes") if isinstance(value, dict) else value for value in values]
