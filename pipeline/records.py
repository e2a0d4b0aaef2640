"""Preference records: the Arrow table a rollout hands to the learner, and its way back into tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.prompts import SampleBatch

LATENT_COLUMNS = ("x_t", "winner", "loser", "reference_mean")


@dataclass(frozen=True)
class StepPreferences:
    """Preferences of a batch of B samples at one trained step: latents (B, C, H, W) and scores (B,), all float32."""

    step: int
    x_t: Tensor
    winner: Tensor
    loser: Tensor
    reference_mean: Tensor
    winner_score: Tensor
    loser_score: Tensor
    ranked_winner_score: Tensor
    reference_log_prob_winner: Tensor
    reference_log_prob_loser: Tensor
    tie: Tensor
    guidance_accepted: Tensor | None
    guidance_move: Tensor | None


def records_schema(latent_shape: Sequence[int]) -> pa.Schema:
    """The schema of a records table, one preference pair a row; docs/records.md describes every column."""
    latent = pa.fixed_shape_tensor(pa.float32(), tuple(latent_shape))
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("iteration", pa.int64(), nullable=False),
            pa.field("policy_version", pa.int64(), nullable=False),
            pa.field("sample", pa.int64(), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            *(pa.field(name, latent, nullable=False) for name in LATENT_COLUMNS),
            pa.field("winner_score", pa.float32(), nullable=False),
            pa.field("loser_score", pa.float32(), nullable=False),
            pa.field("ranked_winner_score", pa.float32(), nullable=False),
            pa.field("reference_log_prob_winner", pa.float32(), nullable=False),
            pa.field("reference_log_prob_loser", pa.float32(), nullable=False),
            pa.field("tie", pa.bool_(), nullable=False),
            pa.field("guidance_accepted", pa.bool_()),
            pa.field("guidance_move", pa.float32()),
            pa.field("final_reward", pa.float32(), nullable=False),
        ]
    )


def records_table(
    steps: Sequence[StepPreferences], batch: SampleBatch, final_reward: Tensor, policy_version: int
) -> pa.Table:
    """One batch's preferences, K steps of B samples, as a table of K*B rows.

    `row` = sample * K + k numbers the pairs of an iteration, whoever made them. `final_reward` (B,) is the reward of
    the finished images.
    """
    latent_shape = steps[0].x_t.shape[1:]
    tables = []
    for index, preferences in enumerate(steps):
        count = len(batch.samples)
        columns: dict[str, Any] = {
            "row": [sample * len(steps) + index for sample in batch.samples],
            "iteration": [batch.iteration] * count,
            "policy_version": [policy_version] * count,
            "sample": list(batch.samples),
            "prompt": list(batch.prompts),
            "step": [preferences.step] * count,
            "final_reward": _to_arrow(final_reward, pa.float32(), count),
        }
        for field in records_schema(latent_shape):
            if field.name not in columns:
                columns[field.name] = _to_arrow(getattr(preferences, field.name), field.type, count)
        tables.append(pa.table(columns, schema=records_schema(latent_shape)))
    return pa.concat_tables(tables).combine_chunks()


@dataclass(frozen=True)
class PreferencePairs:
    """Rows of a records table as tensors: N pairs, latents (N, C, H, W) float32 on the CPU, steps (N,) int64."""

    rows: Tensor
    prompts: list[str]
    steps: Tensor
    x_t: Tensor
    winner: Tensor
    loser: Tensor
    reference_mean: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Tensor) -> "PreferencePairs":
        """The pairs at `indices`, (M,) int64, in that order."""
        return PreferencePairs(
            rows=self.rows[indices],
            prompts=[self.prompts[index] for index in indices.tolist()],
            steps=self.steps[indices],
            x_t=self.x_t[indices],
            winner=self.winner[indices],
            loser=self.loser[indices],
            reference_mean=self.reference_mean[indices],
        )


def trainable_pairs(table: pa.Table) -> PreferencePairs:
    """The pairs of a table that are no ties, sorted by `row`, so that the order of arrival does not matter."""
    table = table.filter(pa.compute.invert(table["tie"])).sort_by("row").combine_chunks()
    latents = {name: torch.from_numpy(latent_column(table, name)) for name in LATENT_COLUMNS}
    return PreferencePairs(
        rows=torch.tensor(table["row"].to_pylist(), dtype=torch.int64),
        prompts=table["prompt"].to_pylist(),
        steps=torch.tensor(table["step"].to_pylist(), dtype=torch.int64),
        **latents,
    )


def latent_column(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tensor column as (N, C, H, W) float32."""
    shape = table.schema.field(name).type.shape
    if not len(table):
        return np.empty((0, *shape), dtype=np.float32)
    column = table[name].combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([chunk.to_numpy_ndarray() for chunk in chunks])


def save_records(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet that pandas and `ray.data.read_parquet` open; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(table, temporary, compression="zstd")
    temporary.rename(path)


def _to_arrow(values: Tensor | None, arrow_type: pa.DataType, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, arrow_type)
    array = values.detach().cpu().numpy()
    if isinstance(arrow_type, pa.FixedShapeTensorType):
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))
    return pa.array(array, type=arrow_type)
