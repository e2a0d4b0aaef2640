"""Charts as SVG, drawn at the width of a phone: a page shows one of them there, and several side by side elsewhere."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.report.aggregate import Band
from pipeline.report.history import Series
from pipeline.report.looks import PLAIN, Look

STYLE = Path(__file__).parent / "templates" / "charts.mplstyle"

WIDTH, HEIGHT = 4.6, 2.9
"""Inches; an inch is 72 units of the SVG, and 10-point text stays above 10 pixels where a page is 390 pixels wide."""

TEXT_LINE, BAR_ROW = 0.2, 0.24
"""Inches: the height of a line of text, and of a bar under its label."""

CHARACTERS_OF_A_ROW, CHARACTERS_OF_A_HANDLE = 52, 7
"""How much text a chart is wide, and how much of that the piece of line before a label of the legend takes."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        label: its name in the legend; empty for a curve that needs none.
        band: the line, and the range around it.
        look: colour and dashes.
        repeats: the runs behind it, (x, y) each, drawn thin; empty where there is one run.
    """

    label: str
    band: Band
    look: Look = PLAIN
    repeats: tuple[tuple[Series, Series], ...] = ()


@dataclass(frozen=True)
class Bar:
    """A mean with its interval."""

    label: str
    mean: float
    low: float
    high: float
    look: Look


def line_chart(curves: Sequence[Curve], x_label: str, y_label: str, y_limits: tuple[float, float] | None = None) -> str:
    """Curves over what they cost, as an SVG document, with their labels above them."""
    labels = [_wrapped(curve.label, CHARACTERS_OF_A_ROW - CHARACTERS_OF_A_HANDLE) for curve in curves]
    columns = _legend_columns(labels)
    with context(STYLE):
        figure, axes = _empty_chart(HEIGHT + _legend_height(labels, columns))
        lines = [_draw(curve, axes) for curve in curves]
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(x=0.02)
        if y_limits is not None:
            axes.set_ylim(y_limits)
        if any(labels):
            # Lines and labels by name: of a label that begins with _ the library would make no entry.
            figure.legend(
                handles=[line for line, label in zip(lines, labels, strict=True) if label],
                labels=[label for label in labels if label],
                loc="outside upper left",
                ncols=columns,
                handlelength=2.4,
                columnspacing=1.2,
                borderaxespad=0.2,
            )
        return _svg(figure)


def interval_chart(bars: Sequence[Bar], x_label: str) -> str:
    """Means and intervals one below the other, each under its label, with a line at zero, as an SVG document."""
    labels = [_wrapped(bar.label, CHARACTERS_OF_A_ROW) for bar in bars]
    heights = [TEXT_LINE * _lines(label) + BAR_ROW for label in labels]
    with context(STYLE):
        figure, axes = _empty_chart(sum(heights) + 0.6)
        axes.axvline(0, color="#666666", linewidth=1)
        for bar, label, bottom in zip(bars, labels, accumulate(heights), strict=True):
            middle = bottom - BAR_ROW / 2
            axes.plot([bar.low, bar.high], [middle, middle], color=bar.look.colour, linewidth=2.2)
            axes.plot([bar.mean], [middle], color=bar.look.colour, marker="o", markersize=6)
            # At the left edge whatever the numbers are; the white behind it keeps the grid out of the letters.
            background = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text(
                0.005, bottom - BAR_ROW, label, va="bottom", bbox=background, transform=axes.get_yaxis_transform()
            )
        axes.set(xlabel=x_label, ylim=(sum(heights) + 0.05, -0.05))
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure)


def _draw(curve: Curve, axes: Axes) -> Line2D:
    """Draw a curve with all that belongs to it; its line is for the legend."""
    band, colour = curve.band, curve.look.colour
    for x, y in curve.repeats:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.4)
    axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    # A line through one point is nothing; the dot is there for a run of one iteration.
    marker = "o" if len(band.x) == 1 else ""
    (line,) = axes.plot(band.x, band.mean, color=colour, linestyle=curve.look.dashes, linewidth=1.8, marker=marker)
    return line


def _wrapped(label: str, width: int) -> str:
    """A label in lines of at most `width` characters; empty stays empty."""
    return "\n".join(textwrap.wrap(label, width))


def _lines(label: str) -> int:
    return label.count("\n") + 1


def _legend_columns(labels: Sequence[str]) -> int:
    """How many labels stand side by side."""
    longest = max(len(line) for label in labels for line in label.split("\n"))
    return max(1, CHARACTERS_OF_A_ROW // (longest + CHARACTERS_OF_A_HANDLE))


def _legend_height(labels: Sequence[str], columns: int) -> float:
    """Inches that a legend adds; none without labels."""
    lines = sum(_lines(label) for label in labels if label)
    return TEXT_LINE * ceil(lines / columns)


def _empty_chart(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    # Without its date and the library's version the same numbers give the same bytes.
    document = io.StringIO()
    figure.savefig(document, format="svg", metadata={"Date": None, "Creator": None})
    return document.getvalue()
