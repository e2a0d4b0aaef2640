"""The progress line: plain lines in a log, one rewritten line on a terminal."""

import io
import re
import sys
import threading
import time
from typing import Any

import pytest
from eventually import PATIENCE_S

from pipeline.progress import ProgressReporter, progress_line


def metrics(iteration: int, seconds: float = 2.0) -> dict[str, Any]:
    return {"iteration": iteration, "reward": 1.23456, "loss": 0.693147, "pairs": 64.0, "seconds": seconds}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_says_where_the_run_is() -> None:
    assert progress_line(metrics(4), 100, [2.0, 4.0]) == (
        "iteration 5/100  reward 1.2346  loss 0.6931  32.0 pairs/s  4:45 left"
    )


@pytest.mark.parametrize(
    ("iteration", "seconds", "left"),
    [(9, [2.0], "0:00"), (8, [9.4], "0:09"), (0, [400.0], "60:00"), (0, [6.66], "1:00")],
)
def test_the_time_left_is_the_mean_iteration_times_those_to_come(
    iteration: int, seconds: list[float], left: str
) -> None:
    assert progress_line(metrics(iteration), 10, seconds).endswith(f"  {left} left")


def test_an_iteration_of_ties_has_a_line_too() -> None:
    assert "loss -  0.0 pairs/s" in progress_line(metrics(0) | {"loss": float("nan"), "pairs": 0.0}, 10, [1.0])


@pytest.mark.parametrize(
    ("iterations", "spent", "left", "filled"),
    # After two iterations of 2 s each, of a budget of 60 s: by time, by the iterations left, and when it is overspent.
    [(1000, 20.0, "0:40", 8), (4, 20.0, "0:04", 12), (1000, 70.0, "0:00", 24)],
)
def test_a_run_that_its_time_ends_is_shown_by_its_time(iterations: int, spent: float, left: str, filled: int) -> None:
    stream = Terminal()
    reporter = ProgressReporter(iterations, stream, budget_seconds=60.0)
    reporter.show(metrics(1) | {"seconds_spent": spent})
    line = stream.getvalue()
    assert f"iteration 2, {spent:.0f} of 60 s  reward" in line and line.endswith(f"  {left} left")
    assert line.count("█") == filled


def test_a_log_gets_a_plain_line_an_iteration() -> None:
    stream = io.StringIO()
    reporter = ProgressReporter(3, stream)
    for iteration in range(3):
        reporter.show(metrics(iteration))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    for iteration, line in enumerate(lines, start=1):
        assert re.match(rf"\d\d:\d\d:\d\d iteration {iteration}/3  reward", line)
        assert line.isascii()


def test_a_terminal_gets_a_bar_that_is_drawn_over() -> None:
    stream = Terminal()
    reporter = ProgressReporter(2, stream)
    for iteration in range(2):
        reporter.show(metrics(iteration))
    first, second = stream.getvalue().split("\r\x1b[K")[1:]
    assert "\n" not in stream.getvalue()
    assert (first.count("█"), first.count("░")) == (12, 12)
    assert (second.count("█"), second.count("░")) == (24, 0)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_following_prints_every_iteration_once_and_the_last_ones_at_the_end(stream: io.StringIO) -> None:
    history: list[dict[str, Any]] = []
    reporter = ProgressReporter(5, stream)
    with reporter.following(lambda first: [one for one in history if one["iteration"] >= first]):
        history += [metrics(0), metrics(1)]
        deadline = time.monotonic() + PATIENCE_S
        while "iteration 2/5" not in stream.getvalue():
            assert time.monotonic() < deadline, "the first iterations were never printed"
            time.sleep(0.02)
        history += [metrics(2)]  # written just before the run ends
    found = re.findall(r"iteration (\d)/5", stream.getvalue())
    assert found == ["1", "2", "3"]
    assert stream.getvalue().endswith("\n")


def test_following_ends_with_the_run_that_fails() -> None:
    stream = io.StringIO()
    reporter = ProgressReporter(5, stream)
    with pytest.raises(RuntimeError, match="the run broke"), reporter.following(lambda first: [metrics(0)][first:]):
        raise RuntimeError("the run broke")
    assert "iteration 1/5" in stream.getvalue()


def test_standard_output_is_that_of_now(monkeypatch):
    for _ in range(2):
        monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
        assert ProgressReporter(1).stream is stream


def test_a_run_that_does_not_begin_says_what_it_waits_for(monkeypatch):
    monkeypatch.setattr("pipeline.progress.WAITING_SECONDS", 0.01)
    monkeypatch.setattr("pipeline.progress.POLL_SECONDS", 0.01)
    reasons, history, stream = iter(["the learner finds no room", ""]), [], io.StringIO()
    asked = threading.Event()

    def waits_for() -> str:
        reason = next(reasons)
        if not reason:
            history.append(metrics(0))
            asked.set()
        return reason

    reporter = ProgressReporter(iterations=1, stream=stream)
    with reporter.following(lambda first: history[first:], waits_for):
        assert asked.wait(PATIENCE_S)
    lines = stream.getvalue().splitlines()
    assert [line[len("00:00:00 ") :] for line in lines[:-1]] == ["the learner finds no room"]
    assert "iteration 1/1" in lines[-1]
