"""pairs.parquet: the numbers of every pair of images behind an evaluation."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.report.evaluation_file import EVALUATION_FILE, RunEvaluation

PAIRS_FILE = "pairs.parquet"
PAIR = ["prompt", "sample"]
SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("measure", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("sample", pa.int64()),
        pa.field("base", pa.float64()),
        pa.field("aligned", pa.float64()),
    ]
)

BASE_TOLERANCE = 1e-3
"""Relative, of scores of the same image: a GPU that draws it twice rounds otherwise the second time."""


def read_pairs(folder: Path) -> pd.DataFrame | None:
    """The pairs of a run, indexed by measure, prompt and sample, with columns kind, base and aligned; None without.

    Raises:
        ValueError: a file that is no table of pairs.
    """
    path = folder / PAIRS_FILE
    if not path.is_file():
        return None
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=SCHEMA.names)
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if missing := set(SCHEMA.names) - set(table.column_names):
        raise ValueError(f"{path} is no table of pairs: it has no column {', '.join(sorted(missing))}")
    return _plain(table, path).set_index(["measure", *PAIR]).sort_index()


def _plain(table: pa.Table, path: Path) -> pd.DataFrame:
    """The columns as text and numbers: pandas would unpickle those of a type that Ray Data has for objects.

    Raises:
        ValueError: a column is of such a type, or of another that is neither, or there are two of one name.
    """
    for field in table.schema:
        if isinstance(field.type, pa.BaseExtensionType):
            raise ValueError(f"{path} is no table of pairs: its column {field.name} is of type {field.type}")
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError(f"{path} is no table of pairs: it has two columns of one name")
    try:
        return table.select(SCHEMA.names).cast(SCHEMA).to_pandas(ignore_metadata=True)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no table of pairs: {error}") from None


def check_pairs(folder: Path, pairs: pd.DataFrame, evaluation: RunEvaluation) -> None:
    """Refuse pairs that another evaluation left in a run folder.

    Raises:
        ValueError: a reward's mean difference over the pairs is not that of the evaluation.
    """
    for measure, row in evaluation.rewards.items():
        if measure in pairs.index.levels[0]:
            table = pairs.loc[measure]
            difference = float((table.aligned - table.base).mean())
            if not math.isclose(difference, row.difference, rel_tol=1e-4, abs_tol=1e-4):
                raise ValueError(
                    f"{folder / PAIRS_FILE} is of another evaluation than {EVALUATION_FILE} beside it: in its pairs "
                    f"{measure} rose by {difference:g}, there by {row.difference:g}; copy both files, or neither"
                )


def share_pairs(runs: Sequence[pd.DataFrame | None], measure: str) -> bool:
    """Whether every run has numbers of a measure, of the same pairs."""
    found = [run.loc[measure].index for run in runs if run is not None and measure in run.index.levels[0]]
    return len(found) == len(runs) and all(index.equals(found[0]) for index in found)


def share_base(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether the base model has the same scores in all that both runs measured: else its images were others.

    Of one prompt and sample they are others where model, sampling or the seed of the evaluation is another.
    """
    both = one.index.intersection(other.index)
    return bool(np.allclose(one.base.loc[both], other.base.loc[both], rtol=BASE_TOLERANCE, atol=1e-6))
