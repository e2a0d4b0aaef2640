"""The files of a data set and their columns, as they are found before Ray starts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfFileSystem

from pipeline.data_files import (
    FORMATS,
    DataFiles,
    columns_of,
    locate_data,
    parse_json,
    require_columns,
    require_text_column,
)


def write_parquet(path: Path, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def hub_layout(tmp_path: Path) -> Path:
    """A folder as `hf download` leaves it: the converted Parquet files, the card, and the records of the download."""
    folder = tmp_path / "parti-prompts"
    for number in (1, 0):
        write_parquet(folder / "default" / "train" / f"{number:04d}.parquet", Prompt=[f"a fox {number}"])
    (folder / "README.md").write_text("A card.")
    records = folder / ".cache" / "huggingface" / "download" / "default" / "train"
    records.mkdir(parents=True)
    (records / "0000.parquet.metadata").write_text("a revision")
    return folder


def test_a_folder_a_pattern_and_a_file_give_the_files_in_order(hub_layout: Path) -> None:
    expected = tuple(str(hub_layout / "default" / "train" / f"{number:04d}.parquet") for number in (0, 1))
    for source in (hub_layout, f"{hub_layout}/**/*.parquet", hub_layout / "default"):
        files = locate_data(str(source))
        assert (files.paths, files.format, files.filesystem) == (expected, "Parquet", None)
    assert locate_data(expected[1]).paths == expected[1:]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt,count\n"a fox, asleep",1\n'),
        ("a.tsv", "prompt\tcount\na fox, asleep\t1\n"),
        ("a.jsonl", '{"prompt": "a fox", "count": 1}\n'),
        ("a.JSON", '[{"prompt": "a fox", "count": 1}]'),
    ],
)
def test_every_format_tells_its_columns(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    files = locate_data(str(tmp_path))
    assert columns_of(files, files.paths[0]) == {"prompt": pa.string(), "count": pa.int64()}


def test_a_json_list_of_strings_is_a_column_of_prompts() -> None:
    assert parse_json(b'["a fox", "a cat"]').to_pydict() == {"prompt": ["a fox", "a cat"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a fox"}', "holds no list"),
        (b"[]", "holds no list"),
        (b'["a fox", 3]', "mixes"),
        (b"[", "Expecting value"),
    ],
)
def test_other_json_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(content)


def test_a_missing_column_is_named_with_those_that_there_are(hub_layout: Path) -> None:
    files = locate_data(str(hub_layout))
    assert require_columns(files, ["Prompt"], "fix") == {"Prompt": pa.string()}
    with pytest.raises(ValueError, match=r"0000.parquet' has no column prompt, x; its columns are Prompt; rename it"):
        require_columns(files, ["prompt", "x"], "rename it")


def test_a_later_file_without_the_column_is_named(hub_layout: Path) -> None:
    write_parquet(hub_layout / "default" / "train" / "0002.parquet", Text=["a fox"])
    with pytest.raises(ValueError, match=r"0002.parquet' has no column Prompt; its columns are Text; rename it"):
        require_columns(locate_data(str(hub_layout)), ["Prompt"], "rename it")


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl", "a.json"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"{name}' cannot be read as .*; repair the file or leave it out"):
        require_columns(locate_data(str(tmp_path / name)), ["prompt"], "fix")


def test_places_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no '.*nowhere\.parquet': give a file, a folder or a pattern"):
        locate_data(str(tmp_path / "nowhere.parquet"))
    (tmp_path / "README.md").write_text("A card.")
    with pytest.raises(ValueError, match=r"holds no file that ends in \.parquet, \.csv"):
        locate_data(str(tmp_path))
    write_parquet(tmp_path / "a.parquet", prompt=["a fox"])
    (tmp_path / "b.csv").write_text("prompt\na fox\n")
    with pytest.raises(ValueError, match=r"several formats \(CSV, Parquet\); choose those of one by a pattern such as"):
        locate_data(str(tmp_path))


def test_a_folder_of_save_to_disk_is_refused_with_the_way_to_parquet(tmp_path: Path) -> None:
    for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}")
    for source in (tmp_path, tmp_path / "data-00000-of-00001.arrow"):
        with pytest.raises(ValueError, match=rf"load_from_disk\('{tmp_path}'\)\.to_parquet\("):
            locate_data(str(source))


@pytest.mark.parametrize(("name", "text"), [("a.csv", "prompt\na fox\n"), ("a.json", '[{"prompt": "a fox"}]')])
def test_columns_are_read_through_a_file_system_like_the_hubs(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    write_parquet(tmp_path / "a.parquet", prompt=["a fox"])
    for path, format_name in ((tmp_path / name, FORMATS[Path(name).suffix]), (tmp_path / "a.parquet", "Parquet")):
        files = DataFiles("owner/name", format_name, (str(path),), LocalFileSystem())
        require_text_column(files, "prompt", "prompts.train.column")
        with pytest.raises(ValueError, match=r"has no column text; its columns are prompt; set prompts.train.column"):
            require_text_column(files, "text", "prompts.train.column")


def test_splits_of_a_data_set_on_the_hub_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = "datasets/owner/name@refs/convert/parquet/default"
    of_one = [f"{copy}/train/{number:04d}.parquet" for number in range(2)]
    monkeypatch.setattr(HfFileSystem, "glob", lambda _self, _pattern: of_one)
    assert locate_data("owner/name").paths == tuple(of_one)
    monkeypatch.setattr(HfFileSystem, "glob", lambda _self, _pattern: [*of_one, f"{copy}/test/0000.parquet"])
    with pytest.raises(ValueError, match=r"has 2 parts, .* name one of them: hf://.*/default/test/\*.parquet, hf://"):
        locate_data("owner/name")
    assert len(locate_data("hf://datasets/owner/name/**/*.parquet").paths) == 3


def test_a_hub_that_cannot_be_reached_names_the_id_and_the_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'nateraw/parti-prompts' cannot be had from the hub") as caught:
        locate_data("nateraw/parti-prompts")
    command = "hf download nateraw/parti-prompts --repo-type dataset --revision refs/convert/parquet --local-dir DIR"
    assert command in str(caught.value) and "give DIR instead" in str(caught.value)
    with pytest.raises(ValueError, match="hf download zhwang/HPDv2 --repo-type dataset --local-dir DIR"):
        locate_data("hf://datasets/zhwang/HPDv2@main/benchmark/*.json")
