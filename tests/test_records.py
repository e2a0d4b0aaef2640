"""Preference records: their schema, their way through Parquet, and their way back into tensors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.parquet_file import write_parquet
from pipeline.prompts import SampleBatch
from pipeline.records import latent_column
from pipeline.step_preferences import LATENT_COLUMNS, StepPreferences, records_schema, records_table, trainable_pairs

BATCH = SampleBatch(iteration=2, samples=(5, 3, 9), prompts=("a red circle", "🦊 قطة", "a cross"))
SHAPE = (2, 3, 4)


def preferences(step: int, guided: bool = False, tie: tuple[bool, ...] = (False, False, False)) -> StepPreferences:
    """Three samples whose every number is different and known."""
    generator = torch.Generator().manual_seed(step)
    latents = {name: torch.randn(3, *SHAPE, generator=generator) for name in LATENT_COLUMNS}
    numbers = torch.randn(6, 3, generator=generator)
    return StepPreferences(
        step=step,
        **latents,
        winner_score=numbers[0],
        loser_score=numbers[1],
        ranked_winner_score=numbers[2],
        reference_log_prob_winner=numbers[3],
        reference_log_prob_loser=numbers[4],
        tie=torch.tensor(tie),
        guidance_accepted=torch.tensor([True, False, True]) if guided else None,
        guidance_move=numbers[5] if guided else None,
    )


def make_table(guided: bool = False, tie: tuple[bool, ...] = (False, False, False)) -> pa.Table:
    steps = [preferences(0, guided, tie), preferences(4, guided)]
    return records_table(steps, BATCH, torch.tensor([1.5, 2.5, 3.5]), policy_version=7)


def test_the_table_has_the_schema_and_the_values() -> None:
    table = make_table(guided=True)
    assert table.schema.equals(records_schema(SHAPE))
    table.validate(full=True)
    assert table["row"].to_pylist() == [10, 6, 18, 11, 7, 19]  # sample * K + k
    assert table["sample"].to_pylist() == [5, 3, 9] * 2
    assert table["step"].to_pylist() == [0] * 3 + [4] * 3
    assert table["prompt"].to_pylist() == list(BATCH.prompts) * 2
    assert table["final_reward"].to_pylist() == [1.5, 2.5, 3.5] * 2
    assert set(table["iteration"].to_pylist()) == {2}
    assert set(table["policy_version"].to_pylist()) == {7}
    assert table["guidance_accepted"].to_pylist() == [True, False, True] * 2
    for name in (*LATENT_COLUMNS, "winner_score", "loser_score", "ranked_winner_score", "guidance_move"):
        expected = torch.cat([getattr(preferences(step, guided=True), name) for step in (0, 4)]).numpy()
        found = latent_column(table, name) if name in LATENT_COLUMNS else table[name].to_numpy()
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)


def test_without_guidance_its_columns_are_null() -> None:
    table = make_table()
    assert table.schema.equals(records_schema(SHAPE))
    assert table["guidance_accepted"].null_count == table["guidance_move"].null_count == 6
    assert all(table[field.name].null_count == 0 for field in table.schema if not field.nullable)


def test_parquet_opens_in_pyarrow_and_in_pandas(tmp_path: Path) -> None:
    path, table = tmp_path / "records" / "iteration.parquet", make_table(guided=True)
    write_parquet(table, path)
    read = pq.read_table(path)
    assert read.schema.equals(table.schema)
    assert read.equals(table)
    frame = pd.read_parquet(path)
    assert frame["row"].tolist() == table["row"].to_pylist()
    assert frame["prompt"].tolist() == table["prompt"].to_pylist()
    np.testing.assert_array_equal(frame["winner_score"], table["winner_score"].to_numpy())
    latents = np.stack([np.asarray(value, dtype=np.float32).reshape(SHAPE) for value in frame["x_t"]])
    np.testing.assert_array_equal(latents, latent_column(table, "x_t"))


def test_a_save_replaces_the_file_whole_and_leaves_no_debris(tmp_path: Path) -> None:
    path = tmp_path / "iteration.parquet"
    path.write_bytes(b"half a file")
    (tmp_path / ".iteration.parquet.partial").write_bytes(b"of a killed run")
    write_parquet(make_table(), path)
    assert len(pq.read_table(path)) == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["iteration.parquet"]


def test_pairs_come_back_as_tensors_sorted_by_row_and_without_ties() -> None:
    table = make_table(tie=(True, False, False))
    pairs = trainable_pairs(table)
    assert pairs["row"].tolist() == [6, 7, 11, 18, 19]
    assert len(pairs) == 5
    assert pairs["step"].tolist() == [0, 4, 4, 0, 4]
    assert pairs.prompts == ["🦊 قطة", "🦊 قطة", "a red circle", "a cross", "a cross"]
    assert torch.equal(pairs["winner"][0], preferences(0).winner[1])
    assert torch.equal(pairs["loser"][2], preferences(4).loser[0])
    assert torch.equal(pairs["reference_mean"][4], preferences(4).reference_mean[2])


def test_pairs_do_not_depend_on_the_order_of_arrival() -> None:
    table = make_table()
    shuffled = pa.concat_tables([table.slice(4), table.slice(0, 1), table.slice(1, 3)])
    one, other = trainable_pairs(table), trainable_pairs(shuffled)
    assert one.prompts == other.prompts
    for name in ("row", "step", *LATENT_COLUMNS):
        assert torch.equal(one[name], other[name])


def test_a_selection_keeps_its_order() -> None:
    pairs = trainable_pairs(make_table()).select(torch.tensor([4, 0]))
    assert pairs["row"].tolist() == [18, 6]
    assert pairs.prompts == ["a cross", "🦊 قطة"]
    assert torch.equal(pairs["x_t"][1], preferences(0).x_t[1])
    assert len(pairs.select(torch.empty(0, dtype=torch.int64))) == 0


def test_a_table_of_ties_alone_has_no_pairs() -> None:
    table = make_table(tie=(True, True, True)).slice(0, 3)
    pairs = trainable_pairs(table)
    assert len(pairs) == 0
    assert pairs["x_t"].shape == (0, *SHAPE)


def test_latents_survive_chunks_and_slices() -> None:
    table = pa.concat_tables([make_table(), make_table()]).slice(2, 7)
    expected = np.concatenate([latent_column(make_table(), "loser")] * 2)[2:9]
    assert np.array_equal(latent_column(table, "loser"), expected)


@pytest.mark.parametrize("name", ["row", "x_t", "tie", "final_reward"])
def test_no_column_but_those_of_guidance_may_be_null(name: str) -> None:
    nullable = {field.name for field in records_schema(SHAPE) if field.nullable}
    assert nullable == {"guidance_accepted", "guidance_move"}
    assert name not in nullable
