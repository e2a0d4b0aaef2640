"""Pictures of base and aligned model, small enough to travel inside the page."""

import base64
import io
from math import ceil
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.report.comparison import Comparison, Method
from pipeline.report.content import Picture, Section
from pipeline.report.explanations import PICTURES
from pipeline.report.history import RunHistory

MOST_BYTES = 400_000
"""Of one embedded picture, before base64 makes it a third longer."""

WIDEST, NARROWEST = 1600, 512
"""Pixels: a picture that takes too many bytes is at most that wide, and a narrow one is enlarged by a whole factor."""

JPEG_QUALITY = 85

PAIRS = {
    "before_after": "changed most",
    "best": "rose most",
    "median": "changed as most did",
    "worst": "fell most",
}
"""Pictures of pairs in a run folder, and how the reward by which they were chosen changed in them."""

CHOSEN_BY_THE_RUN = "before_after"
"""The one that the run made itself; the others come with evaluation.json, which another evaluation may have made."""

READABLE_GRID, READABLE_PAIRS = 0, 760
"""Pixels below which a picture is not shrunk: pairs carry their prompts, and move sideways on a phone instead."""


def pictures_section(comparison: Comparison) -> Section | None:
    """Sample grids of base and newest policy side by side, then evaluated pairs; None where no run has pictures.

    Raises:
        ValueError: a file that is no picture; the message names it.
    """
    pictures: list[Picture] = []
    shown: set[str] = set()
    for method in comparison.methods:
        # Methods that share model, prompts and seed begin with the same grid; once is enough.
        fresh = [picture for picture in _grids(method) if picture.data_uri not in shown]
        shown |= {picture.data_uri for picture in fresh}
        pictures += fresh
    pictures += [picture for method in comparison.methods for picture in _pairs(method)]
    return Section("Pictures", paragraphs=(PICTURES,), pictures=tuple(pictures)) if pictures else None


def embed(path: Path) -> str:
    """A picture file as a data URI of at most MOST_BYTES: PNG where that is small enough, else JPEG.

    Raises:
        ValueError: the file is no picture.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is no picture: {error}") from None
    factor = ceil(NARROWEST / image.width)
    # Nearest neighbour keeps every pixel of a small model visible; a browser would blur them.
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    # A file that is too large as PNG is not written as one again only to find that out.
    lossless = _as_png(image) if path.stat().st_size <= MOST_BYTES else None
    if lossless is not None and len(lossless) <= MOST_BYTES:
        return _data_uri("png", lossless)
    return _data_uri("jpeg", _as_jpeg(image))


def _as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _as_jpeg(image: Image.Image) -> bytes:
    """As wide as MOST_BYTES and WIDEST allow."""
    width = min(image.width, WIDEST)
    while True:
        smaller = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        smaller.save(file, format="JPEG", quality=JPEG_QUALITY, optimize=True)
        if file.tell() <= MOST_BYTES or width == 1:
            return file.getvalue()
        width = max(1, width * 3 // 4)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _grids(method: Method) -> list[Picture]:
    run = method.runs[0]
    files = sorted((run.folder / "samples").glob("iteration_*.png"))
    if len(files) < 2:
        return []
    newest = int(files[-1].stem.removeprefix("iteration_"))
    captions = [f"Base model ({run.name})", f"{method.label} after {newest} iterations ({run.name})"]
    return [
        Picture(caption, f"Sample grid: {caption}", embed(path), READABLE_GRID)
        for caption, path in zip(captions, (files[0], files[-1]), strict=True)
    ]


def _pairs(method: Method) -> list[Picture]:
    """Those of the run's own evaluation, or those of an evaluation of its adapter."""
    run = method.runs[0]
    alt = f"Pairs of images, each under its prompt: before and after alignment by {method.label}."
    prompts = "held-out prompts" if run.settings.holds_out else "prompts trained on"
    pictures = []
    for name, change in PAIRS.items():
        path = run.folder / f"{name}.png"
        if path.is_file():
            which = f"{prompts} whose {_reward_of(name, run)} {change}"
            caption = f"Base beside {method.label}, {which} ({run.name})"
            pictures.append(Picture(caption, alt, embed(path), READABLE_PAIRS))
    return pictures


def _reward_of(picture: str, run: RunHistory) -> str:
    """The reward by which the pairs of a picture were chosen: what is trained on, or the first that was evaluated."""
    if picture == CHOSEN_BY_THE_RUN:
        return run.settings.reward_title
    return next(iter(run.evaluation.rewards), "reward") if run.evaluation is not None else "reward"
