"""What a person sees while a run goes on: a bar on a terminal, plain lines in a job log."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

POLL_SECONDS = 0.5
WAITING_SECONDS = 60.0
"""Between two lines that say what a run waits for, as long as no iteration has been shown."""

BAR_WIDTH = 24

Metrics = dict[str, Any]


class ProgressReporter:
    """Prints an iteration as soon as its metrics are there."""

    def __init__(self, iterations: int, stream: TextIO | None = None, *, budget_seconds: float | None = None) -> None:
        """Report on `stream`, or on standard output, a run of `iterations`, or of as many as `budget_seconds` allow."""
        self.iterations = iterations
        self.budget_seconds = budget_seconds
        # What standard output is now, not when this module was imported.
        self.stream = sys.stdout if stream is None else stream
        self._seconds: list[float] = []

    @contextmanager
    def following(
        self, metrics_since: Callable[[int], list[Metrics]], waits_for: Callable[[], str] = str
    ) -> Iterator[None]:
        """Print, from a thread of its own, what `metrics_since(first iteration not yet printed)` returns.

        Args:
            waits_for: what keeps the first iteration from beginning, empty where nothing does.
        """
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(metrics_since, waits_for, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if self.stream.isatty():
                print(file=self.stream)

    def show(self, metrics: Metrics) -> None:
        """Print one iteration."""
        self._seconds.append(metrics["seconds"])
        line = progress_line(metrics, self.iterations, self._seconds, self.budget_seconds)
        if self.stream.isatty():
            share = share_done(metrics, self.iterations, self.budget_seconds)
            print(f"\r\x1b[K{_bar(share)} {line}", end="", file=self.stream, flush=True)
        else:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=self.stream, flush=True)

    def _follow(
        self, metrics_since: Callable[[int], list[Metrics]], waits_for: Callable[[], str], ended: threading.Event
    ) -> None:
        following, ask_at = 0, time.monotonic() + WAITING_SECONDS
        while True:
            last_round = ended.is_set()
            for metrics in metrics_since(following):
                self.show(metrics)
                following = metrics["iteration"] + 1
            if last_round:
                return
            if not self._seconds and time.monotonic() >= ask_at:
                ask_at += WAITING_SECONDS
                if reason := waits_for():
                    print(f"{time.strftime('%H:%M:%S')} {reason}", file=self.stream, flush=True)
            ended.wait(POLL_SECONDS)


def progress_line(metrics: Metrics, iterations: int, seconds: list[float], budget_seconds: float | None = None) -> str:
    """One iteration in one line; the time left follows from the mean of the iterations seen, or from the budget."""
    done = metrics["iteration"] + 1
    left = (iterations - done) * sum(seconds) / len(seconds)
    position = f"{done}/{iterations}"
    if budget_seconds is not None:
        left = min(left, max(0.0, budget_seconds - metrics["seconds_spent"]))
        position = f"{done}, {metrics['seconds_spent']:.0f} of {budget_seconds:g} s"
    minutes, remaining_seconds = divmod(round(left), 60)
    return (
        f"iteration {position}  reward {_decimal(metrics['reward'])}  "
        f"loss {_decimal(metrics['loss'])}  {metrics['pairs'] / metrics['seconds']:.1f} pairs/s  "
        f"{minutes}:{remaining_seconds:02d} left"
    )


def share_done(metrics: Metrics, iterations: int, budget_seconds: float | None = None) -> float:
    """How much of a run lies behind it, from 0 to 1."""
    share = (metrics["iteration"] + 1) / iterations
    return share if budget_seconds is None else min(1.0, max(share, metrics["seconds_spent"] / budget_seconds))


def _decimal(value: float | None) -> str:
    """Four decimals; a mean over nothing, such as the loss of an iteration of ties, is a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _bar(share: float) -> str:
    filled = int(BAR_WIDTH * share)
    return "█" * filled + "░" * (BAR_WIDTH - filled)
