"""How patient a fleet is with workers that do not start."""

import math
import time
from collections.abc import Iterable

# Pause before the next one: doubles from the first to the second, seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

# Workers that were on their way before the first of them failed may yet come up: they load weights for that long.
LOADING_S = 120.0


class StartFailures:
    """Counts those that follow one another, until a worker is ready.

    A constructor that raises will mostly raise again, so few of them end the fleet. A process killed while it starts
    may have shared the fate of its node, so there is more patience, and a pause, with those. Where others serve, or may
    come to, it can be the new one's node that is at fault, and the fleet goes on without it.
    """

    def __init__(self, most: int, max_workers: int) -> None:
        """`most` constructors that raise in a row, or `max_workers` times as many killed processes, are too many."""
        self._most_raised, self._most_crashed = most, most * max_workers
        self.forget()

    def forget(self) -> None:
        """A worker is ready."""
        self._raised = self._crashed = self._pauses = 0
        self._first_at = math.inf

    @property
    def in_a_row(self) -> int:
        """How many were counted."""
        return self._raised + self._crashed

    def count(self, crashed: bool, others_serve: bool, others_started_at: Iterable[float]) -> float | None:
        """Take note of one, and say for how many seconds to pause before the next; None where that is no use.

        Args:
            crashed: its process died; otherwise its constructor raised.
            others_serve: whether a worker is ready.
            others_started_at: when those were started that are not ready, by time.monotonic().
        """
        now = time.monotonic()
        self._first_at = math.inf if others_serve else min(self._first_at, now)
        if not others_serve:
            self._crashed += crashed
            self._raised += not crashed
        others_load = now < self._first_at + LOADING_S and any(at < self._first_at for at in others_started_at)
        if not (others_serve or others_load):
            if self._raised >= self._most_raised or self._crashed >= self._most_crashed:
                return None
            if not crashed:
                return 0.0
        pause_s = min(FIRST_PAUSE_S * 2 ** min(self._pauses, 10), LONGEST_PAUSE_S)
        self._pauses += 1
        return pause_s
