"""How curves are told apart: colours that all kinds of colour vision separate, and dashes for everyone else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np

from pipeline.report.comparison import Comparison

Dashes = Literal["solid"] | tuple[int, tuple[float, ...]]

COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#8f3f97", "#000000", "#8a6d00")
"""Apart by hue and by lightness, and at a contrast of at least 3 on white."""

DASHES: tuple[Dashes, ...] = ("solid", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.2, 1.5)))

DARKEST, LIGHTEST = 0.0, 0.6
"""The part of the viridis map, which is ordered by lightness, that stands out from white."""


@dataclass(frozen=True)
class Look:
    """Colour and dashes of a curve."""

    colour: str
    dashes: Dashes = "solid"


PLAIN = Look(COLOURS[0])
"""Of a curve that is alone."""


def looks_of(comparison: Comparison) -> dict[str, Look]:
    """A look for each method by its label, the same in every chart; up to a dozen methods no look comes twice."""
    return looks_of_labels([method.label for method in comparison.methods])


def looks_of_labels(labels: Sequence[str]) -> dict[str, Look]:
    """`looks_of`, for whatever is compared."""
    return {
        label: Look(COLOURS[index % len(COLOURS)], DASHES[(index + index // len(COLOURS)) % len(DASHES)])
        for index, label in enumerate(labels)
    }


def ordered_looks(count: int) -> list[Look]:
    """Looks of things that have an order, such as steps, from dark to light."""
    colour_map = matplotlib.colormaps["viridis"]
    positions = np.linspace(DARKEST, LIGHTEST, count)
    return [Look(matplotlib.colors.to_hex(colour_map(position))) for position in positions]
