"""Prompts in columns of data sets, read by Ray Data."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from actors.cluster import ClusterInfo
from actors.prompts import prompts_of_run, read_prompt_column
from actors.tables import read_table
from pipeline.data_files import locate_data
from pipeline.prompt_sets import save_prompt_sets
from pipeline.prompt_settings import PromptColumnSettings, PromptSettings


@pytest.fixture(autouse=True)
def connected(ray_session: ClusterInfo) -> None:
    """Ray Data runs on it."""


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Two Parquet files as the hub converts them, of 40 prompts, with a repeated one and two that are missing."""
    folder = tmp_path / "data" / "default" / "train"
    folder.mkdir(parents=True)
    for number in range(2):
        prompts = [f"prompt {number} {row}" for row in range(20)] + ["prompt 0 0", None]
        pq.write_table(pa.table({"Prompt": prompts, "Category": ["x"] * 22}), folder / f"{number:04d}.parquet")
    return tmp_path / "data"


def read(path: Path, column: str = "prompt") -> list[str]:
    return read_prompt_column(PromptColumnSettings(path=str(path), column=column), "train")


def test_a_run_splits_a_data_set_and_is_resumed_with_the_same_prompts(data_set: Path, tmp_path: Path) -> None:
    settings = PromptSettings(train={"path": str(data_set), "column": "Prompt"}, split={"share": 0.25})
    run = tmp_path / "run"
    sets = prompts_of_run(settings, run)
    assert len(sets.train) + len(sets.held_out) == 40
    in_order = [f"prompt {n} {row}" for n in range(2) for row in range(20)]
    assert 0 < len(sets.held_out) < 20 and set(sets.train).isdisjoint(sets.held_out)
    assert sets.train == [prompt for prompt in in_order if prompt in sets.train]
    assert sets.held_out != [prompt for prompt in in_order if prompt in sets.held_out], "a sample first, of both files"
    save_prompt_sets(sets, settings, run)
    shutil.rmtree(data_set)
    assert prompts_of_run(settings, run) == sets


FORMATS = pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'n,prompt\n1,"a fox,\nasleep"\n2,\n3,a cat\n'),
        ("a.tsv", "n\tprompt\n1\ta fox, asleep\n3\ta cat\n"),
        ("a.jsonl", '{"prompt": "a fox, asleep"}\n{"prompt": null}\n{"prompt": "a cat"}\n'),
        ("a.ndjson", '{"prompt": "a fox, asleep"}\n{"prompt": "a cat"}\n'),
        ("a.json", '["a fox, asleep", "a cat"]'),
    ],
)


@FORMATS
def test_every_format_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read(tmp_path / name) == ["a fox, asleep", "a cat"]


@FORMATS
def test_every_format_is_read_through_a_file_system_such_as_the_hub_s(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text if name != "a.json" else '[{"prompt": "a fox, asleep"}, {"prompt": "a cat"}]')
    here = locate_data(str(tmp_path / name))
    there = replace(here, filesystem=LocalFileSystem())
    on_disk, through = ([row["prompt"] for row in read_table(files, ["prompt"]).take_all()] for files in (here, there))
    assert through == on_disk and through[-1] == "a cat"


def test_parquet_is_read_through_a_file_system_such_as_the_hub_s(data_set: Path) -> None:
    files = replace(locate_data(str(data_set)), filesystem=LocalFileSystem())
    rows = [row["Prompt"] for row in read_table(files, ["Prompt"]).take_all()]
    assert len(rows) == 44 and rows[0] == "prompt 0 0" and rows[-1] is None


def test_a_column_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,prompt\n1,a fox\n")
    with pytest.raises(ValueError, match=r"column 'n' of .* holds int64, not text; set prompts.train.column .*prompt"):
        read(tmp_path / "a.csv", "n")
    with pytest.raises(ValueError, match=r"has no column text; its columns are n, prompt; set prompts.train.column"):
        read(tmp_path / "a.csv", "text")


def test_a_data_set_without_a_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('n,prompt\n1," "\n2,""\n')
    with pytest.raises(ValueError, match=r"column 'prompt' of .* holds no prompt: its 2 rows are missing or blank"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("b.csv", "prompt,n\na fox,1\n", "prompt,n\na fox,1\na cat,2,3\n"),
        ("b.jsonl", '{"prompt": "a fox"}\n', '{"prompt": "a f'),
        ("b.json", '["a fox"]', "{}"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_else_is_printed(
    tmp_path: Path, name: str, first: str, second: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"a{Path(name).suffix}").write_text(first)
    (tmp_path / name).write_text(second)
    with pytest.raises(ValueError, match=r"cannot be read as [^\n]*; repair the file or leave it out$"):
        read(tmp_path)
    assert "Traceback" not in capfd.readouterr().err
