"""The tables as one picture, a panel each."""

import io
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from PIL import Image

from pipeline.claims.guided import PAPER_SHARES
from pipeline.claims.intervals import Interval
from pipeline.claims.page import Result
from pipeline.report.charts import STYLE
from pipeline.report.looks import COLOURS

PANEL_WIDTH, PANEL_HEIGHT = 5.0, 3.6
DOTS_PER_INCH = 110


def claims_chart(results: dict[str, Result]) -> Image.Image:
    """The panels of those tables that were made, by name, two side by side."""
    made = [name for name in PANELS if name in results]
    columns = min(2, len(made))
    rows = -(-len(made) // columns)
    with context(STYLE):
        figure = Figure(figsize=(PANEL_WIDTH * columns, PANEL_HEIGHT * rows), layout="constrained")
        for place, name in enumerate(made):
            PANELS[name](figure.add_subplot(rows, columns, place + 1), results[name])
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return Image.open(picture)


def _order(axes: Axes, result: Result) -> None:
    labels = _remaining(result)
    _points(axes, labels, [row["disagree"] for row in result["rows"]], "step-wise against final order", 0)
    _points(axes, labels, [row["final_disagree"] for row in result["rows"]], "final against final again", 1)
    axes.axhline(0.5, color="#666666", linewidth=1, linestyle=(0, (5, 3)))
    axes.set(title="Orders that differ", xlabel="steps that remain", ylabel="share of pairs", ylim=(0, 1))
    axes.legend(loc="upper right")


def _guidance(axes: Axes, result: Result) -> None:
    labels = _remaining(result)
    _points(axes, labels, [row["raised"] for row in result["rows"]], "here", 0)
    if result["num_steps"] == 20:
        known = [(place, PAPER_SHARES[int(label)]) for place, label in enumerate(labels) if int(label) in PAPER_SHARES]
        axes.plot(*zip(*known, strict=True), color=COLOURS[4], marker="x", linestyle="", label="paper, SD v1.5")
    axes.set(title="Guided samples whose reward rose", xlabel="steps that remain", ylabel="share", ylim=(0, 1.05))
    axes.legend(loc="lower right")


def _steps(axes: Axes, result: Result) -> None:
    _arms(axes, result)
    axes.set(title="Number of trained steps", xlabel="TailorPO trained on")


def _strength(axes: Axes, result: Result) -> None:
    _arms(axes, result)
    axes.set(title="Guidance strength", xlabel="η from noisy to clean")


def _arms(axes: Axes, result: Result) -> None:
    """What the trained reward gained; other rewards have other units and are in the table alone."""
    name = next(iter(result["rows"][0]["rewards"]))
    changes = [row["rewards"][name] for row in result["rows"]]
    intervals = [{"mean": row["difference"], "low": row["low"], "high": row["high"]} for row in changes]
    _points(axes, [row["label"] for row in result["rows"]], intervals, "", 0, linestyle="")
    axes.axhline(0, color="#666666", linewidth=1)
    axes.set_ylabel(f"held-out {name}, aligned less base")


def _points(
    axes: Axes, labels: list[str], intervals: list[Interval], label: str, look: int, linestyle: str = "solid"
) -> None:
    """Means with their intervals, a little to the side of those of other looks."""
    means = [interval["mean"] for interval in intervals]
    below = [max(0.0, interval["mean"] - interval["low"]) for interval in intervals]
    above = [max(0.0, interval["high"] - interval["mean"]) for interval in intervals]
    places = [place + 0.08 * look for place in range(len(labels))]
    colour: dict[str, Any] = {"color": COLOURS[look], "marker": "os"[look], "markersize": 5, "capsize": 3}
    axes.errorbar(places, means, yerr=(below, above), label=label or None, linestyle=linestyle, linewidth=1.4, **colour)
    axes.set_xticks(range(len(labels)), labels)
    axes.margins(x=0.1)


def _remaining(result: Result) -> list[str]:
    return [str(row["remaining_steps"]) for row in result["rows"]]


PANELS: dict[str, Callable[[Axes, Result], None]] = {
    "order": _order,
    "guidance": _guidance,
    "steps": _steps,
    "strength": _strength,
}
