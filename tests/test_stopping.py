"""Real signals to a real process: what is under way may end well, and never for longer than it was given."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from eventually import PATIENCE_S, wait_until

from jobs.quiet import resumable_by
from pipeline import stopping
from pipeline.stopping import RunStoppedError, StopRequest, work_until_stopped

REPOSITORY = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys, threading, time
from pipeline.stopping import RunStoppedError, work_until_stopped

def work(stop):
    asked = threading.Event()
    stop.listen(asked.set)
    print("working", flush=True)
    asked.wait()
    time.sleep({seconds_to_end})
    print("checkpoint", flush=True)
    stop.raise_if_made()

try:
    work_until_stopped(work, {grace_seconds}, lambda text: print(text, flush=True))
except RunStoppedError as stopped:
    print(stopped, flush=True)
    sys.exit(stopped.exit_code)
"""


def start(seconds_to_end: float, grace_seconds: float) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(seconds_to_end=seconds_to_end, grace_seconds=grace_seconds)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_work_end_with_a_checkpoint(number):
    process = start(seconds_to_end=0.3, grace_seconds=60)
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE_S)
    announced, checkpoint, stopped = output.splitlines()
    assert announced.startswith(f"{number.name}: the work in progress has 60 s to end")
    assert checkpoint == "checkpoint"
    assert stopped == f"stopped by {number.name}, with a checkpoint of all that was done"
    assert process.returncode == 128 + number


@pytest.mark.parametrize("second_signal", [False, True], ids=["time is over", "second signal"])
def test_work_that_takes_too_long_is_given_up(second_signal):
    process = start(seconds_to_end=600, grace_seconds=60 if second_signal else 0.2)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and "SIGTERM" in process.stdout.readline()
    if second_signal:
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert output == "stopped by SIGTERM, the work in progress was given up\n"
    assert process.returncode == 143


def test_work_that_is_not_disturbed_returns_or_raises():
    before = signal.getsignal(signal.SIGTERM)
    assert work_until_stopped(lambda stop: threading.current_thread().daemon, 1.0, print) is True
    with pytest.raises(ZeroDivisionError):
        work_until_stopped(lambda stop: 1 // 0, 1.0, print)
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_that_ends_by_itself_after_a_signal_is_no_failure():
    def work(stop: StopRequest) -> str:
        asked = threading.Event()
        stop.listen(asked.set)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(PATIENCE_S)
        time.sleep(0.05)
        return "finished"

    assert work_until_stopped(work, 60.0, lambda _: None) == "finished"


def test_a_request_is_made_again_until_the_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a listener that has forgotten the first one, as a journal that Ray started anew has."""
    monkeypatch.setattr(stopping, "REPEAT_SECONDS", 0.01)
    asked: list[None] = []

    def work(stop: StopRequest) -> None:
        stop.listen(lambda: asked.append(None))
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: len(asked) >= 3)
        stop.raise_if_made()

    with pytest.raises(RunStoppedError, match="stopped by SIGTERM, with a checkpoint"):
        work_until_stopped(work, 600.0, lambda _: None)
    requests = len(asked)
    time.sleep(0.05)
    assert len(asked) == requests, "it is asked for although the work has ended"


def test_whoever_listens_late_hears_of_a_request_too():
    stop, heard = StopRequest(), []
    stop.raise_if_made()
    stop.make(signal.SIGINT)
    stop.listen(lambda: heard.append("late"))
    assert heard == ["late"]
    with pytest.raises(RunStoppedError, match="stopped by SIGINT"):
        stop.raise_if_made()


@pytest.mark.parametrize(
    ("end", "code"), [(KeyboardInterrupt(), 130), (SystemExit(signal.SIGTERM), 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_job_that_is_stopped_says_how_to_go_on(
    end: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's handler of SIGTERM exits with the signal's number."""
    with pytest.raises(SystemExit) as caught, resumable_by("python jobs/compare.py --resume here"):
        raise end
    assert caught.value.code == code
    assert "continue with: python jobs/compare.py --resume here" in capsys.readouterr().err


def test_a_job_that_is_stopped_before_it_began_names_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), resumable_by("python jobs/compare.py --resume here", begun=lambda: False):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped; nothing was begun yet\n"


def test_a_job_that_ends_by_itself_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="a reason"), resumable_by("it"):
        sys.exit("a reason")
    assert capsys.readouterr().err == ""
