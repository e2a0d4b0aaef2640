"""Pictures from tensors, grids and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib.tables._g_l_y_f import Glyph
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from PIL import Image

from pipeline.images import PAPER, before_after_grid, image_grid, save_png
from pipeline.pixels import to_pil


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, colour)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(0, 3), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_eight_bit_pictures_survive_the_trip_through_tensors(batch: int, height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(batch, height, width, 3), dtype=np.uint8)
    pictures = to_pil(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert len(pictures) == batch
    for picture, expected in zip(pictures, pixels, strict=True):
        assert np.array_equal(np.asarray(picture), expected)


def test_pixels_are_rounded_and_clamped() -> None:
    values = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.5]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert np.asarray(to_pil(values)[0])[0, :, 0].tolist() == [0, 0, 1, 255, 255]


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4), (1, 4, 4, 3)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\)"):
        to_pil(torch.zeros(shape))


def test_a_grid_fills_rows_first_and_ends_in_white() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9), (70, 70, 70)]
    grid = image_grid([flat(colour) for colour in colours], columns=3)
    assert grid.size == (48, 32)
    centres = [grid.getpixel((16 * column + 8, 16 * row + 8)) for row in range(2) for column in range(3)]
    assert centres == [*colours, PAPER]


def test_a_grid_of_few_pictures_is_no_wider_than_they_are() -> None:
    assert image_grid([flat((1, 2, 3))] * 2, columns=8).size == (32, 16)


def test_grids_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="no picture"):
        image_grid([], columns=2)
    with pytest.raises(ValueError, match="one size"):
        image_grid([flat((0, 0, 0)), flat((0, 0, 0), size=(8, 8))], columns=2)
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        image_grid([flat((0, 0, 0))], columns=0)
    with pytest.raises(ValueError, match="2 pictures before, 1 after and 2 prompts do not pair up"):
        before_after_grid([flat((0, 0, 0))] * 2, [flat((0, 0, 0))], ["a", "b"])


def test_before_and_after_stand_side_by_side_enlarged_without_smoothing() -> None:
    red, blue = (250, 10, 20), (10, 20, 250)
    grid = before_after_grid([flat(red, (64, 64))], [flat(blue, (64, 64))], ["a cat"])
    pixels = np.asarray(grid).reshape(-1, 3)
    assert (pixels == red).all(axis=1).sum() == (3 * 64) ** 2
    assert (pixels == blue).all(axis=1).sum() == (3 * 64) ** 2
    reds = np.argwhere((np.asarray(grid) == red).all(axis=2))
    blues = np.argwhere((np.asarray(grid) == blue).all(axis=2))
    assert reds[:, 0].min() == blues[:, 0].min()
    assert reds[:, 1].max() < blues[:, 1].min()


def test_large_pictures_keep_their_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=(256, 256, 3), dtype=np.uint8)
    grid = np.asarray(before_after_grid([Image.fromarray(noise)], [flat((0, 0, 0), (256, 256))], ["noise"]))
    windows = [grid[top : top + 256, 8 : 8 + 256] for top in range(grid.shape[0] - 255)]
    assert any(np.array_equal(window, noise) for window in windows)


PROMPTS = ["a cat", "word " * 200, "x" * 500, "una señora & 猫が好き 🦊🔥", "", "two\nlines"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_any_prompt_stays_above_its_pictures(prompt: str) -> None:
    grey = flat((128, 0, 128), (64, 64))
    grid = np.asarray(before_after_grid([grey], [grey], [prompt]))
    blank = np.asarray(before_after_grid([grey], [grey], [""]))
    assert grid.shape == blank.shape
    changed = np.argwhere((grid != blank).any(axis=2))
    assert (len(changed) > 0) == bool(prompt)
    if prompt:
        first_picture_row = np.argwhere((grid == (128, 0, 128)).all(axis=2))[:, 0].min()
        assert changed[:, 0].max() < first_picture_row - 16, "the caption must not reach the labels"
        assert changed[:, 1].max() < grid.shape[1] - 8, "the caption must keep the margin"
        assert changed[:, 0].min() >= 4


@pytest.mark.parametrize(("one", "other"), [("кот", "жук"), ("λύκος", "τράγος"), ("قط", "كلب"), ("é", "ñ")])
def test_captions_in_other_scripts_can_be_read(one: str, other: str) -> None:
    """Characters that a font lacks all look alike: equally many of them make the same picture."""
    length = min(len(one), len(other))
    grids = [before_after_grid([flat((0, 0, 0))], [flat((0, 0, 0))], [text[:length]]) for text in (one, other)]
    assert grids[0].tobytes() != grids[1].tobytes()


def write_font(path: Path, characters: str) -> Path:
    """A font whose every character is a box of a width of its own."""
    names = [".notdef", *(f"glyph{number}" for number in range(len(characters)))]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(character): name for character, name in zip(characters, names[1:], strict=True)})
    font.setupGlyf({name: box(100 * number) for number, name in enumerate(names, 1)})
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    font.setupPost()
    font.save(path)
    return path


def box(width: int) -> Glyph:
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (width, 700), (width, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def test_a_prompt_is_written_in_the_font_of_the_machine_that_has_its_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever lies among the fonts, files that are none included."""
    (tmp_path / "broken.ttf").write_text("no font")
    fonts = [write_font(tmp_path / "one.ttf", "猫"), write_font(tmp_path / "two.ttf", "猫狗"), tmp_path / "broken.ttf"]

    def grids() -> list[bytes]:
        black = flat((0, 0, 0))
        return [before_after_grid([black], [black], [prompt]).tobytes() for prompt in ("猫", "狗", "кот")]

    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    cat, dog, cyrillic = grids()
    assert cat == dog, "characters that no font has look alike"
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(map(str, fonts)))
    found = grids()
    assert found[0] != found[1] and cat not in found[:2]
    assert found[2] == cyrillic


def test_a_png_is_written_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "grid.png"
    save_png(flat((1, 2, 3)), path)
    save_png(flat((4, 5, 6)), path)
    with Image.open(path) as read:
        assert read.getpixel((0, 0)) == (4, 5, 6)
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"]


def test_a_failed_write_leaves_the_old_picture_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    save_png(flat((1, 2, 3)), path)
    with pytest.raises(OSError, match="PNG"):
        save_png(Image.new("CMYK", (4, 4)), path)
    with Image.open(path) as read:
        assert read.getpixel((0, 0)) == (1, 2, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]
