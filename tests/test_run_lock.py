"""A run folder has one process at a time."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from pipeline.run_lock import held_alone

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.run_lock import held_alone

with held_alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds runs/one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "runs" / "one")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_holds_is_refused_until_that_is_killed(holder, tmp_path):
    with pytest.raises(ValueError, match=r"another process is at work on .*runs/one and holds .*runs/\.one\.lock"):
        held_alone(tmp_path / "runs" / "one", patience_s=0.3).__enter__()
    with held_alone(tmp_path / "runs" / "two"):
        pass
    Timer(0.5, holder.send_signal, [signal.SIGKILL]).start()
    with held_alone(tmp_path / "runs" / "one", patience_s=60):
        assert not (tmp_path / "runs" / "one").exists(), "a run that is refused later leaves no folder behind"


def test_a_folder_is_free_after_its_work_even_if_that_failed(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), held_alone(tmp_path / "run"):
            raise ZeroDivisionError


def test_one_folder_has_one_lock_by_whatever_name_it_goes(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for name in (folder, Path(), tmp_path / "link"):
        with held_alone(name):
            assert [path.name for path in tmp_path.rglob("*.lock")] == [".one.lock"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_that_cannot_lock_is_warned_of_and_keeps_no_mark(tmp_path, caplog, monkeypatch, code):
    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with caplog.at_level(logging.WARNING), held_alone(tmp_path / "run", patience_s=0.1):
            pass
    assert caplog.text.count("cannot be locked") == 2
