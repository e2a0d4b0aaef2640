"""Rows of preference data sets: which pairs they give, and what is wrong with the others."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preference_files import pair, png, write_pairs

from pipeline.data_files import locate_data
from pipeline.encoder import decode_images
from pipeline.preference_pairs import CLEAN_SCHEMA, check_pair_columns, clean_pairs, state_pairs


def test_the_label_tells_which_image_is_preferred() -> None:
    table = clean_pairs(pa.Table.from_pylist([pair(1), pair(2, label_0=0.0), pair(3, caption=" a\n fox ")]))
    assert table.schema == CLEAN_SCHEMA and table["fault"].to_pylist() == ["", "", ""]
    assert table["prompt"].to_pylist() == ["prompt 1", "prompt 2", "a fox"]
    assert table["preferred"].to_pylist() == [pair(1)["jpg_0"], pair(2)["jpg_1"], pair(3)["jpg_0"]]
    assert table["rejected"].to_pylist() == [pair(1)["jpg_1"], pair(2)["jpg_0"], pair(3)["jpg_1"]]
    assert len(set(table["digest"].to_pylist())) == 3


def test_pairs_without_a_preference_or_a_prompt_are_told_apart() -> None:
    rows = [pair(1, label_0=0.5), pair(2, label_0=None), pair(3, caption=" "), pair(4)]
    table = clean_pairs(pa.Table.from_pylist(rows))
    assert table["fault"].to_pylist() == ["tie", "unlabelled", "uncaptioned", ""]
    assert table["preferred"].null_count == 3


@pytest.mark.parametrize("content", [b"", b"no image", png((9, 9, 9), (64, 64))[:60], png((1, 2, 3))[:-30], None])
def test_an_image_that_does_not_decode_is_named(content: bytes | None) -> None:
    faults = clean_pairs(pa.Table.from_pylist([pair(1, jpg_1=content), pair(2)]))["fault"].to_pylist()
    assert faults[0].startswith("unreadable jpg_1: ") and "0x" not in faults[0] and faults[1] == ""


def test_images_that_do_not_decode_are_left_out_up_to_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    rows = clean_pairs(pa.Table.from_pylist([pair(1), pair(2, jpg_1=b"no image"), pair(3, jpg_0=b"")]))
    with caplog.at_level(logging.WARNING):
        stated = state_pairs(rows, "pairs", max_unreadable=2)
    assert (stated["rows"], stated["pairs"], stated["left_out"]) == (3, 1, {"unreadable": 2})
    assert "2 of 3 pairs are left out" in caplog.text and "row 1 ('prompt 2'), jpg_1: cannot identify" in caplog.text
    with pytest.raises(
        ValueError, match=r"2 pairs of 'pairs' have .* more than method.max_unreadable=1: row 1 .*row 2"
    ):
        state_pairs(rows, "pairs", max_unreadable=1)


def test_a_data_set_is_stated_by_a_hash_of_its_usable_pairs() -> None:
    first, other = ([pair(1), pair(number), pair(3, label_0=0.5)] for number in (2, 4))
    hashes = [
        state_pairs(clean_pairs(pa.Table.from_pylist(rows)), "pairs", 0)["sha256"]
        for rows in (first, first, first[:2], other, first[1::-1])
    ]
    assert hashes[0] == hashes[1] == hashes[2] and len(set(hashes)) == 3


def test_a_data_set_without_a_usable_pair_is_refused() -> None:
    rows = clean_pairs(pa.Table.from_pylist([pair(1, label_0=0.5), pair(2, label_0=None)]))
    with pytest.raises(ValueError, match=r"'pairs' has no pair to learn from: 1 tie, 1 unlabelled; choose another"):
        state_pairs(rows, "pairs", max_unreadable=0)
    with pytest.raises(ValueError, match="no pair to learn from: no rows at all"):
        state_pairs(rows.slice(0, 0), "pairs", max_unreadable=0)


def test_a_label_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label_0 is 0\.7; it must be 1, 0, 0\.5 for a tie, or null"):
        clean_pairs(pa.Table.from_pylist([pair(1, label_0=0.7)]))


def test_the_hubs_image_columns_are_read_too() -> None:
    row = pair(1)
    images = {name: {"bytes": row[name], "path": "1.png"} for name in ("jpg_0", "jpg_1")}
    table = clean_pairs(pa.Table.from_pylist([row | images]))
    assert table["preferred"].to_pylist() == [row["jpg_0"]]


def test_images_are_scaled_to_cover_a_square_and_cropped_to_its_middle() -> None:
    images = decode_images([png((255, 0, 51), (40, 20)), png((0, 0, 0), (7, 9))], 16)
    assert images.shape == (2, 3, 16, 16)
    assert images[0].amax(dim=(1, 2)).tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a fox"], "jpg_0": ["no bytes"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has no column jpg_1, label_0; its columns are caption, jpg_0; rename its"):
        check_pair_columns(locate_data(str(tmp_path)))
    table = pa.table({"caption": ["a fox"], "jpg_0": ["no bytes"], "jpg_1": ["no bytes"], "label_0": [1.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column jpg_0 of .* holds string, not the bytes of encoded images"):
        check_pair_columns(locate_data(str(tmp_path)))
    (tmp_path / "a.parquet").rename(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"holds CSV files; pairs of images are read as Parquet"):
        check_pair_columns(locate_data(str(tmp_path)))
    check_pair_columns(locate_data(str(write_pairs(tmp_path / "b.parquet", [pair(1)]))))


@pytest.mark.parametrize("inside", [pa.binary(), pa.large_binary()])
def test_image_columns_of_the_hub_hold_bytes_beside_a_path(tmp_path: Path, inside: pa.DataType) -> None:
    image = pa.struct([("bytes", inside), ("path", pa.string())])
    schema = pa.schema([("caption", pa.string()), ("jpg_0", image), ("jpg_1", image), ("label_0", pa.float64())])
    row = pair(1)
    row |= {name: {"bytes": row[name], "path": None} for name in ("jpg_0", "jpg_1")}
    pq.write_table(pa.Table.from_pylist([row], schema), tmp_path / "a.parquet")
    check_pair_columns(locate_data(str(tmp_path)))


@pytest.mark.parametrize("fields", [[("path", pa.string())], [("bytes", pa.string()), ("path", pa.string())]])
def test_structs_without_bytes_are_refused(tmp_path: Path, fields: list[tuple[str, pa.DataType]]) -> None:
    image = {name: "a" for name, _ in fields}
    schema = pa.schema([("caption", pa.string()), ("jpg_0", pa.struct(fields)), ("jpg_1", pa.struct(fields))])
    table = pa.Table.from_pylist([{"caption": "a fox", "jpg_0": image, "jpg_1": image}], schema)
    pq.write_table(table.append_column("label_0", pa.array([1.0])), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column jpg_0 of .* holds struct<.*, not the bytes of encoded images"):
        check_pair_columns(locate_data(str(tmp_path)))
