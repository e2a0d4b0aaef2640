"""The renderer against known colours and areas, and geometry that keeps what prompts say."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.demo.grammar import BACKGROUNDS, COLOURS, SHAPES, parse_prompt
from pipeline.demo.renderer import (
    BACKGROUND_RGB,
    COLOUR_RGB,
    Geometry,
    complete,
    draw_scenes,
    random_attributes,
    render,
    sample_geometry,
)

RADIUS = 20.0
# Areas of the shapes of radius r, in r^2.
AREA = {
    "circle": math.pi,
    "square": (2 * 0.84) ** 2,
    "triangle": 3 * math.sqrt(3) * 0.58**2,
    "star": 10 * 0.5 * 1.08 * 1.08 * 0.45 * math.sin(math.pi / 5),
    "ring": math.pi * (1 - 0.5**2),
    "cross": 4 * 0.64 - 0.64**2,
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def row(prompt: str) -> Tensor:
    return complete(torch.tensor([parse_prompt(prompt).attributes()]), generator())


def centred(shape: str) -> Tensor:
    """A red shape of radius 20 in the middle of a black image: (3, 64, 64)."""
    geometry = Geometry(torch.full((1, 2, 2), 32.0), torch.full((1, 2), RADIUS))
    return render(row(f"a large red {shape} on a black background"), geometry)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_area(shape: str) -> None:
    covered = centred(shape)[0].sum() / (COLOUR_RGB["red"][0] / 255)
    assert covered.item() == pytest.approx(AREA[shape] * RADIUS**2, rel=0.01)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_pixel_colours(colour: str, background: str) -> None:
    image = draw_scenes(row(f"a large {colour} circle on a {background} background"), generator())[0]
    assert torch.allclose(image[:, 0, 0], torch.tensor(BACKGROUND_RGB[background]) / 255)
    assert torch.allclose(image[:, 32, 32], torch.tensor(COLOUR_RGB[colour]) / 255, atol=1e-6)


def test_edges_are_anti_aliased() -> None:
    shares = centred("circle")[0] / (COLOUR_RGB["red"][0] / 255)
    partial = (shares > 0.05) & (shares < 0.95)
    assert 60 < partial.sum() < 250  # about one ring of pixels, 2 pi 20 = 126 long


@pytest.mark.parametrize(
    ("prompt", "axis"), [("a red circle left of a blue star", 0), ("a red circle above a blue star", 1)]
)
def test_relations_order_the_centres(prompt: str, axis: int) -> None:
    rows = complete(torch.tensor([parse_prompt(prompt).attributes()]).repeat(200, 1), generator())
    geometry = sample_geometry(rows, generator())
    gap = geometry.centre[:, 1, axis] - geometry.centre[:, 0, axis] - geometry.radius.sum(dim=1)
    assert (gap > 0).all()


def test_objects_stay_inside_and_sizes_differ() -> None:
    rows = random_attributes(500, 0.5, generator())
    geometry = sample_geometry(rows, generator())
    reach = geometry.radius[:, 0, None]
    assert ((geometry.centre[:, 0] - reach > 0) & (geometry.centre[:, 0] + reach < 64)).all()
    small, large = (geometry.radius[rows[:, 2] == size, 0] for size in (0, 1))
    assert small.max() < 10 < 12 < large.min()


def test_drawing_depends_on_the_generator_alone() -> None:
    rows = random_attributes(8, 0.5, generator())
    assert torch.equal(draw_scenes(rows, generator()), draw_scenes(rows, generator()))
    assert not torch.equal(draw_scenes(rows, generator()), draw_scenes(rows, generator().manual_seed(1)))
