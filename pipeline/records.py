"""Records: the Arrow table a rollout hands to the learner, whatever the method, and its way back into tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.prompts import SampleBatch

COMMON_FIELDS = (
    pa.field("row", pa.int64(), nullable=False),
    pa.field("iteration", pa.int64(), nullable=False),
    pa.field("policy_version", pa.int64(), nullable=False),
    pa.field("sample", pa.int64(), nullable=False),
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("step", pa.int32(), nullable=False),
)
"""The columns every method's records begin with; docs/records.md describes them."""


def latent_type(latent_shape: Sequence[int]) -> pa.DataType:
    """The Arrow type of a latent (C, H, W) float32."""
    return pa.fixed_shape_tensor(pa.float32(), tuple(latent_shape))


def step_records(
    values: dict[str, Tensor | None],
    fields: Sequence[pa.Field],
    batch: SampleBatch,
    step: int,
    index: int,
    steps_per_sample: int,
    policy_version: int,
) -> pa.Table:
    """The records of a batch of B samples at one trained step.

    Args:
        values: (B,) or (B, C, H, W) by column name; None is a column of nulls.
        fields: the method's own columns, which follow the common ones.
        step: index into the sampling grid.
        index: place of the step among the `steps_per_sample` trained ones. `row` = sample * steps_per_sample + index
            numbers the records of an iteration, whoever made them.
    """
    count = len(batch.samples)
    columns: dict[str, Any] = {
        "row": [sample * steps_per_sample + index for sample in batch.samples],
        "iteration": [batch.iteration] * count,
        "policy_version": [policy_version] * count,
        "sample": list(batch.samples),
        "prompt": list(batch.prompts),
        "step": [step] * count,
    }
    columns |= {field.name: _to_arrow(values[field.name], field.type, count) for field in fields}
    return pa.table(columns, schema=pa.schema([*COMMON_FIELDS, *fields]))


@dataclass(frozen=True)
class RecordRows:
    """N records as tensors on the CPU: `rows["x_t"]` is a column, latents (N, C, H, W) float32, numbers (N,)."""

    prompts: list[str]
    columns: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def select(self, indices: Tensor) -> "RecordRows":
        """The records at `indices`, (M,) int64, in that order."""
        return RecordRows(
            prompts=[self.prompts[index] for index in indices.tolist()],
            columns={name: column[indices] for name, column in self.columns.items()},
        )

    def with_column(self, name: str, values: Tensor) -> "RecordRows":
        """The same records with one more column, (N, ...)."""
        return RecordRows(self.prompts, self.columns | {name: values})


def record_rows(table: pa.Table) -> RecordRows:
    """All records of a table, sorted by `row`, so that the order of arrival does not matter.

    Columns with nulls are left out.
    """
    table = table.sort_by("row").combine_chunks()
    columns = {}
    for field in table.schema:
        if isinstance(field.type, pa.FixedShapeTensorType):
            columns[field.name] = torch.from_numpy(latent_column(table, field.name))
        elif field.name != "prompt" and table[field.name].null_count == 0:
            columns[field.name] = torch.from_numpy(table[field.name].to_numpy().copy())
    return RecordRows(table["prompt"].to_pylist(), columns)


def without_latents(table: pa.Table) -> pa.Table:
    """The columns of a table that are prompts and numbers."""
    return table.select([field.name for field in table.schema if not isinstance(field.type, pa.FixedShapeTensorType)])


def latent_column(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tensor column as (N, C, H, W) float32."""
    shape = table.schema.field(name).type.shape
    if not len(table):
        return np.empty((0, *shape), dtype=np.float32)
    column = table[name].combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([chunk.to_numpy_ndarray() for chunk in chunks])


def _to_arrow(values: Tensor | None, arrow_type: pa.DataType, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, arrow_type)
    array = values.detach().cpu().numpy()
    if isinstance(arrow_type, pa.FixedShapeTensorType):
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))
    return pa.array(array, type=arrow_type)
