"""Small preference data sets in the columns of Pick-a-Pic."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(colour: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), colour, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def pair(number: int, **changes: Any) -> dict[str, Any]:
    """A row whose first image, of a red that tells its number, is preferred."""
    images = {"jpg_0": png((10 * number, 0, 0)), "jpg_1": png((0, 0, 10 * number))}
    return {"caption": f"prompt {number}", **images, "label_0": 1.0} | changes


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A Parquet file of rows."""
    schema = pa.schema(
        [("caption", pa.string()), ("jpg_0", pa.binary()), ("jpg_1", pa.binary()), ("label_0", pa.float64())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path
