"""Records of step-wise preferences: two next latents of the same x_t, one preferred. TailorPO's and SPO's."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from pipeline.prompts import SampleBatch
from pipeline.records import COMMON_FIELDS, RecordRows, latent_type, record_rows, step_records

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
    guidance_accepted: Tensor | None = None
    guidance_move: Tensor | None = None


def preference_fields(latent_shape: Sequence[int]) -> list[pa.Field]:
    """The columns that follow the common ones; docs/records.md describes every one."""
    return [
        *(pa.field(name, latent_type(latent_shape), nullable=False) for name in LATENT_COLUMNS),
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


def records_schema(latent_shape: Sequence[int]) -> pa.Schema:
    """The schema of a records table, one preference pair a row."""
    return pa.schema([*COMMON_FIELDS, *preference_fields(latent_shape)])


def records_table(
    steps: Sequence[StepPreferences], batch: SampleBatch, final_reward: Tensor, policy_version: int
) -> pa.Table:
    """One batch's preferences, K steps of B samples, as a table of K*B rows.

    `final_reward` (B,) is the reward of the finished images.
    """
    fields = preference_fields(steps[0].x_t.shape[1:])
    tables = [
        step_records(
            vars(preferences) | {"final_reward": final_reward},
            fields,
            batch,
            preferences.step,
            index,
            len(steps),
            policy_version,
        )
        for index, preferences in enumerate(steps)
    ]
    return pa.concat_tables(tables).combine_chunks()


def trainable_pairs(table: pa.Table) -> RecordRows:
    """The pairs of a table that are no ties, sorted by `row`."""
    return record_rows(table.filter(pc.invert(table["tie"])))
