"""What a tracker is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class TrackerError(RuntimeError):
    """A tracker could not be opened, or did not take what it was given; the message names it."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        name: its name.
        folder: its folder.
        config: its resolved settings, as plain values.
    """

    name: str
    folder: Path
    config: dict[str, Any]


class Tracker(Protocol):
    """Takes the numbers of a run, iteration after iteration.

    Whoever takes up a run makes a new tracker; it goes on with what the earlier ones have kept.
    """

    def begin(self, iteration: int) -> None:
        """Iterations from `iteration` on are about to come, some of them again after a loss of the learner.

        Raises:
            TrackerError: it cannot be opened.
        """

    def record(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Keep an iteration's numbers; one that is kept already is passed over.

        Raises:
            TrackerError: they are not kept; the same iteration may be given again.
        """

    def close(self, succeeded: bool) -> None:
        """Say how the run ended, and let go of everything. A run that failed may be taken up later.

        Raises:
            TrackerError: what was recorded may be incomplete.
        """


def scalars_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Flatten lists (values by trained step) and leave out what is no number."""
    scalars: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, list):
            scalars |= {f"{name}/{index}": float(item) for index, item in enumerate(value)}
        elif isinstance(value, int | float):
            scalars[name] = float(value)
    return scalars
