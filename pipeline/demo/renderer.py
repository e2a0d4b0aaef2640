"""Draws batches of scenes as 64x64 images, anti-aliased by signed distance functions.

A scene here is an attribute row in the order of ``grammar.ATTRIBUTES`` (int64, canonical). Geometry is drawn within
what the row says; ``render`` itself is deterministic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.demo.grammar import BACKGROUNDS, COLOURS, LAYOUTS, SHAPES, SIZES, UNSTATED

IMAGE_SIZE = 64

COLOUR_RGB = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 40),
    "green": (34, 150, 60),
    "cyan": (40, 205, 215),
    "blue": (35, 70, 210),
    "purple": (140, 50, 175),
}
BACKGROUND_RGB = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128), "pink": (255, 200, 215)}

_RADIUS_SINGLE = {"small": (7.5, 9.5), "large": (17.0, 21.0)}
_RADIUS_PAIR = {"small": (7.0, 8.5), "large": (12.5, 14.0)}
_MARGIN = 1.5


@dataclass(frozen=True)
class Geometry:
    """Where objects lie: ``centre`` (B, 2, 2) as x, y in pixels and ``radius`` (B, 2), both float32."""

    centre: Tensor
    radius: Tensor


def complete(attributes: Tensor, generator: torch.Generator) -> Tensor:
    """Draw every ``UNSTATED`` attribute of (B, 8) rows at random; single objects keep an unstated second object."""
    single = attributes[:, 0] == LAYOUTS.index("single")
    drawn = attributes.clone()
    for column, count in ((1, len(BACKGROUNDS)), (2, len(SIZES)), (5, len(SIZES))):
        random_value = torch.randint(count, (len(drawn),), generator=generator)
        drawn[:, column] = torch.where(drawn[:, column] == UNSTATED, random_value, drawn[:, column])
    drawn[single, 5:] = UNSTATED
    return drawn


def random_attributes(count: int, single_share: float, generator: torch.Generator) -> Tensor:
    """``count`` complete attribute rows (count, 8); the two objects of a pair differ in colour or shape."""

    def draw(size: int) -> Tensor:
        return torch.randint(size, (count,), generator=generator)

    n_kinds = len(COLOURS) * len(SHAPES)
    first = draw(n_kinds)
    second = (first + 1 + draw(n_kinds - 1)) % n_kinds
    single = torch.rand(count, generator=generator) < single_share
    layout = torch.where(single, 0, 1 + draw(2))
    columns = [layout, draw(len(BACKGROUNDS))]
    for kind in (first, second):
        columns += [draw(len(SIZES)), kind // len(SHAPES), kind % len(SHAPES)]
    rows = torch.stack(columns, dim=1)
    rows[single, 5:] = UNSTATED
    return rows


def sample_geometry(attributes: Tensor, generator: torch.Generator) -> Geometry:
    """Radii and centres drawn at random within complete (B, 8) rows; objects never touch or leave the image."""
    count = len(attributes)
    layout = attributes[:, 0]
    sizes = attributes[:, [2, 5]].clamp(min=0)
    ranges = torch.tensor([[table[size] for size in SIZES] for table in (_RADIUS_SINGLE, _RADIUS_PAIR)])
    low, high = ranges[(layout > 0).long()[:, None], sizes].unbind(-1)  # (B, 2) each
    radius = low + (high - low) * torch.rand(count, 2, generator=generator)
    # Across the axis of a pair, and on both axes of a single object, the centre moves freely around the middle.
    free = 32 + (torch.rand(count, 2, 2, generator=generator) - 0.5) * 14
    # Along the axis the gap left by both objects is split at random into outer, middle and outer space.
    space = IMAGE_SIZE - 2 * _MARGIN - 2 * radius.sum(dim=1)
    cuts = torch.rand(count, 2, generator=generator) * 0.35
    gap = space.clamp(min=0)
    first = _MARGIN + gap * cuts[:, 0] + radius[:, 0]
    second = IMAGE_SIZE - _MARGIN - gap * cuts[:, 1] - radius[:, 1]
    along = torch.stack([first, second], dim=1)
    centre = free
    centre[:, :, 0] = torch.where((layout == 1)[:, None], along, centre[:, :, 0])
    centre[:, :, 1] = torch.where((layout == 2)[:, None], along, centre[:, :, 1])
    reach = (radius + _MARGIN)[:, :, None]
    return Geometry(torch.maximum(torch.minimum(centre, IMAGE_SIZE - reach), reach), radius)


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.hypot(x, y) - r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.84 * r


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    inradius = 0.58 * r
    y = y - 0.26 * r  # the centroid lies below the middle of the bounding box
    return torch.maximum(y, math.cos(math.pi / 6) * x.abs() - 0.5 * y) - inradius


def _star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (angle - sector * torch.round(angle / sector)).abs()
    distance = torch.hypot(x, y)
    u, v = distance * torch.cos(folded), distance * torch.sin(folded)
    inner_u, inner_v = 0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2)
    edge = math.hypot(1 - inner_u, inner_v)
    return ((u - 1.08 * r) * inner_v + v * (1 - inner_u)) / edge


def _ring(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75 * r).abs() - 0.25 * r


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    long, short = torch.maximum(x, y), torch.minimum(x, y)
    return torch.maximum(long - r, short - 0.32 * r)


_DISTANCE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}


def _coverage(shape: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Share of every pixel that lies inside the object: (N,), (N, 2), (N,) -> (N, 64, 64) in [0, 1]."""
    pixel = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    coverage = torch.zeros(len(shape), IMAGE_SIZE, IMAGE_SIZE)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero(as_tuple=True)[0]
        if len(rows):
            x = pixel[None, None, :] - centre[rows, 0, None, None]
            y = pixel[None, :, None] - centre[rows, 1, None, None]
            coverage[rows] = (0.5 - _DISTANCE[name](x, y, radius[rows, None, None])).clamp(0, 1)
    return coverage


def render(attributes: Tensor, geometry: Geometry) -> Tensor:
    """Draw complete (B, 8) rows: float32 images (B, 3, 64, 64) in [0, 1]."""
    colours = torch.tensor([COLOUR_RGB[name] for name in COLOURS]) / 255
    backgrounds = torch.tensor([BACKGROUND_RGB[name] for name in BACKGROUNDS]) / 255
    images = backgrounds[attributes[:, 1], :, None, None].repeat(1, 1, IMAGE_SIZE, IMAGE_SIZE)
    for slot, column in enumerate((2, 5)):
        rows = (attributes[:, column] != UNSTATED).nonzero(as_tuple=True)[0]
        colour, shape = attributes[rows, column + 1], attributes[rows, column + 2]
        alpha = _coverage(shape, geometry.centre[rows, slot], geometry.radius[rows, slot])[:, None]
        images[rows] += alpha * (colours[colour, :, None, None] - images[rows])
    return images


def draw_scenes(attributes: Tensor, generator: torch.Generator) -> Tensor:
    """Sample geometry for complete (B, 8) rows and render it: images (B, 3, 64, 64) in [0, 1]."""
    return render(attributes, sample_geometry(attributes, generator))
