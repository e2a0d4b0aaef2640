"""What a person sees while a run goes on: a bar on a terminal, plain lines in a job log."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

POLL_SECONDS = 0.5
BAR_WIDTH = 24

Metrics = dict[str, Any]


class ProgressReporter:
    """Prints an iteration as soon as its metrics are there."""

    def __init__(self, iterations: int, stream: TextIO = sys.stdout) -> None:
        """Report a run of `iterations` on `stream`."""
        self.iterations = iterations
        self.stream = stream
        self._seconds: list[float] = []

    @contextmanager
    def following(self, metrics_since: Callable[[int], list[Metrics]]) -> Iterator[None]:
        """Print, from a thread of its own, what `metrics_since(first iteration not yet printed)` returns."""
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(metrics_since, ended), daemon=True)
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
        line = progress_line(metrics, self.iterations, self._seconds)
        if self.stream.isatty():
            print(
                f"\r\x1b[K{_bar(metrics['iteration'] + 1, self.iterations)} {line}",
                end="",
                file=self.stream,
                flush=True,
            )
        else:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=self.stream, flush=True)

    def _follow(self, metrics_since: Callable[[int], list[Metrics]], ended: threading.Event) -> None:
        following = 0
        while True:
            last_round = ended.is_set()
            for metrics in metrics_since(following):
                self.show(metrics)
                following = metrics["iteration"] + 1
            if last_round:
                return
            ended.wait(POLL_SECONDS)


def progress_line(metrics: Metrics, iterations: int, seconds: list[float]) -> str:
    """One iteration in one line; the time left follows from the mean of the iterations seen."""
    left = (iterations - metrics["iteration"] - 1) * sum(seconds) / len(seconds)
    minutes, remaining_seconds = divmod(round(left), 60)
    return (
        f"iteration {metrics['iteration'] + 1}/{iterations}  reward {_decimal(metrics['reward'])}  "
        f"loss {_decimal(metrics['loss'])}  {metrics['pairs'] / metrics['seconds']:.1f} pairs/s  "
        f"{minutes}:{remaining_seconds:02d} left"
    )


def _decimal(value: float | None) -> str:
    """Four decimals; a mean over nothing, such as the loss of an iteration of ties, is a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _bar(done: int, total: int) -> str:
    filled = BAR_WIDTH * done // total
    return "█" * filled + "░" * (BAR_WIDTH - filled)
