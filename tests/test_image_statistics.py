"""Statistics of pictures whose values are known without measuring."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.evaluation.image_statistics import EDGE, IMAGE_STATISTICS, NEAR, image_statistics, slope


def measured(*images: Tensor) -> dict[str, list[float]]:
    rows = image_statistics(torch.stack(images))
    assert rows.shape == (len(IMAGE_STATISTICS), len(images)) and rows.dtype == torch.float32
    return dict(zip(IMAGE_STATISTICS, rows.tolist(), strict=True))


def flat(red: float, green: float, blue: float, side: int = 8) -> Tensor:
    return torch.tensor([red, green, blue])[:, None, None].expand(3, side, side)


def test_flat_pictures() -> None:
    found = measured(flat(0, 0, 0), flat(1, 1, 1), flat(1, 0, 0), flat(0.5, 0.5, 0.5), flat(0.8, 0.4, 0.6))
    assert found["saturation"] == pytest.approx([0, 0, 1, 0, 0.5])
    assert found["near-black share"] == [1, 0, 0, 0, 0]
    assert found["near-white share"] == [0, 1, 0, 0, 0]
    assert found["edge density"] == [0] * 5


def test_near_is_ten_levels_of_the_nearest_channel() -> None:
    just, beyond = NEAR, NEAR + 1 / 255
    found = measured(flat(just, 0, 0), flat(beyond, 0, 0), flat(1, 1, 1 - just), flat(1, 1, 1 - beyond))
    assert found["near-black share"] == [1, 0, 0, 0]
    assert found["near-white share"] == [0, 0, 1, 0]


def test_shares_are_of_pixels() -> None:
    image = flat(1, 1, 1).clone()
    image[:, :2] = 0
    image[:, 2:4] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    found = measured(image)
    assert (found["near-black share"], found["near-white share"], found["saturation"]) == ([0.25], [0.5], [0.25])


def test_a_step_is_an_edge_on_both_of_its_sides() -> None:
    image = torch.zeros(3, 8, 8)
    image[:, :, 4:] = 1
    assert measured(image)["edge density"] == [2 / 8]
    torch.testing.assert_close(slope(image[None])[0, 3], torch.tensor([0, 0, 0, 0.5, 0.5, 0, 0, 0]))
    assert measured(image * 1.9 * EDGE)["edge density"] == [0]
    assert measured(image * 2.1 * EDGE)["edge density"] == [2 / 8]


def test_the_slope_of_a_ramp_is_its_slope_in_any_direction() -> None:
    columns, rows = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    for image, expected in ((columns, 1.0), (rows, 1.0), (columns + rows, 2**0.5)):
        ramp = (image / 20).expand(3, 8, 8)
        torch.testing.assert_close(slope(ramp[None])[0, 1:-1, 1:-1], torch.full((6, 6), expected / 20))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_every_statistic_is_a_share(seed: int) -> None:
    rows = image_statistics(torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed)).round(decimals=1))
    assert torch.isfinite(rows).all() and (rows >= 0).all() and (rows <= 1).all()
