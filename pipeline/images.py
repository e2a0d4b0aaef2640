"""Pictures people look at: sample grids, captioned before/after grids, PNG files.

The journal, a light process that holds no networks, draws grids: nothing here imports torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from tempfile import NamedTemporaryFile

from PIL import Image, ImageDraw, ImageFont, ImageText

MARGIN = 8
"""Pixels between a pair and its neighbours."""

READABLE_SIDE = 192
"""Pixels: narrower pictures are enlarged in a captioned grid, so that they can be judged by eye."""

CAPTION_FONT_SIZE, CAPTION_LINES = 18, 3
"""A caption of more lines is cut and ends in an ellipsis."""

INK, FAINT_INK, PAPER = (20, 20, 20), (120, 120, 120), (255, 255, 255)


def image_grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Lay pictures of one size out row by row in ``columns`` columns; an incomplete last row ends in white.

    Raises:
        ValueError: no picture, pictures of different sizes, or ``columns`` below 1.
    """
    width, height = _common_size(images)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(images))
    grid = Image.new("RGB", (columns * width, ceil(len(images) / columns) * height), PAPER)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        grid.paste(image, (column * width, row * height))
    return grid


PAIRS_PER_ROW = 3


def before_after_grid(
    before: Sequence[Image.Image], after: Sequence[Image.Image], prompts: Sequence[str]
) -> Image.Image:
    """Show pictures of the base model beside those of the aligned one, each pair under its prompt.

    All pictures have one size; small ones are enlarged by a whole factor with nearest neighbour, so that every
    original pixel stays visible. A prompt is written in the font that has most of its characters: Pillow's own, DejaVu
    Sans, or one of the machine's. Characters that it lacks show as boxes: Chinese ones where no font with them is
    installed (Debian's package fonts-noto-cjk has them), and emoji, whose fonts are pictures.

    Raises:
        ValueError: no pairs, lengths that differ, or pictures of different sizes.
    """
    if not len(before) == len(after) == len(prompts):
        raise ValueError(f"{len(before)} pictures before, {len(after)} after and {len(prompts)} prompts do not pair up")
    width, _ = _common_size([*before, *after])
    factor = ceil(READABLE_SIDE / width)
    pairs = [_captioned_pair(*pair, factor) for pair in zip(before, after, prompts, strict=True)]
    return image_grid(pairs, PAIRS_PER_ROW)


def save_png(image: Image.Image, path: Path) -> None:
    """Write ``image`` to ``path`` as PNG, whole or not at all: a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            image.save(file, format="PNG")
        except BaseException:
            temporary.unlink()
            raise
    # A temporary file is private to its owner; a picture of a run is as readable as the folder's other files.
    temporary.chmod(0o644)
    temporary.replace(path)


def _common_size(images: Sequence[Image.Image]) -> tuple[int, int]:
    """Return the (width, height) that all ``images`` share.

    Raises:
        ValueError: no image, or more than one size.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs pictures of one size, got {sorted(sizes) or 'no picture'}")
    return sizes.pop()


def _captioned_pair(before: Image.Image, after: Image.Image, prompt: str, factor: int) -> Image.Image:
    """Draw the prompt, the labels and the two pictures enlarged by ``factor``; the size depends on theirs alone."""
    width, height = before.width * factor, before.height * factor
    caption_font, label_font = _caption_font(prompt), ImageFont.load_default(13)
    caption_height, label_height = CAPTION_LINES * 24, 20
    top = MARGIN + caption_height + label_height
    canvas = Image.new("RGB", (2 * width + 4 * MARGIN, top + height + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    caption = _wrapped(prompt, caption_font, 2 * width + MARGIN, caption_height)
    draw.text((MARGIN, MARGIN + caption_height), caption, fill=INK, font=caption_font, anchor="ld", spacing=4)
    for left, label, picture in ((MARGIN, "before", before), (width + 2 * MARGIN, "after", after)):
        draw.text((left, top - 3), label, fill=FAINT_INK, font=label_font, anchor="ld")
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=FAINT_INK)
        canvas.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top))
    return canvas


def _caption_font(prompt: str) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    if prompt.isascii():
        return ImageFont.load_default(CAPTION_FONT_SIZE)
    # The font that comes with Pillow has ASCII alone; matplotlib brings one with Greek, Cyrillic, Arabic and more.
    from matplotlib import font_manager, get_data_path

    dejavu = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    wanted = {ord(character) for character in prompt if not character.isspace()}
    fonts = [dejavu]
    if not wanted <= _characters(dejavu):
        # Of a family the regular face before the bold one.
        fonts += sorted(font_manager.findSystemFonts(), key=lambda font: ("regular" not in font.lower(), font))
    # Of fonts with equally many of them the first.
    return ImageFont.truetype(max(fonts, key=lambda font: len(wanted & _characters(font))), CAPTION_FONT_SIZE)


@functools.cache
def _characters(font: str) -> frozenset[int]:
    """Code points that a font file has; none of a file that Pillow cannot draw at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(font)
    except (RuntimeError, OSError):  # no font at all, or of a kind that FreeType does not know
        return frozenset()
    return frozenset(face.get_charmap()) if face.scalable else frozenset()


def _wrapped(prompt: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int, height: int) -> str:
    """Break ``prompt`` into lines that fit ``width`` and ``height`` pixels; what does not fit becomes an ellipsis."""
    # Scripts without spaces are one long word, which Pillow cannot break; a character is at most as wide as high.
    longest = width // CAPTION_FONT_SIZE
    words = [word[start : start + longest] for word in prompt.split() for start in range(0, len(word), longest)]
    text = ImageText.Text(" ".join(words), font, spacing=4)
    rest = text.wrap(width, height)
    return text.text if rest is None else f"{text.text[:-1].rstrip()}…"
