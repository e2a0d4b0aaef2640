"""Storage that fails: for a while, which a run outlasts, and for good, which ends it with what to do."""

import errno
import itertools
import logging
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from settings import miniature_settings
from tensorboardX.proto.event_pb2 import Event

from actors.journal import Journal
from pipeline import patience as patience_module
from pipeline.checkpoint_store import CheckpointStore
from pipeline.event_file import EventFile
from pipeline.patience import Patience, StorageError
from pipeline.run_folder import MetricsFile

MANY_SECONDS = Patience(60)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root outside a container")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room for another byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        until_it_fails(lambda _: file.write(bytes(4096)))
    return ballast


def until_it_fails(write: Callable[[int], object]) -> int:
    """Call `write` with 0, 1, ... until the disk is full; return the number it failed at."""
    for number in itertools.count():
        try:
            write(number)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            break
    return number


class FailingStorage:
    """Refuses the first few calls."""

    def __init__(self, refusals: int, error: OSError) -> None:
        self.refusals, self.error, self.calls = refusals, error, 0

    def write(self) -> str:
        self.calls += 1
        if self.calls <= self.refusals:
            raise self.error
        return "written"


def test_what_fails_for_a_while_is_tried_again_and_each_time_it_is_said(caplog):
    storage = FailingStorage(4, ConnectionResetError(errno.ECONNRESET, "reset by peer"))
    with caplog.at_level(logging.WARNING):
        assert MANY_SECONDS.keep_trying("write notes", storage.write) == "written"
    assert storage.calls == 5
    pauses = [float(record.getMessage().split()[-2]) for record in caplog.records]
    assert len(pauses) == 4 and pauses == sorted(pauses)
    assert "could not write notes: [Errno 104] reset by peer; trying again in" in caplog.text


def test_patience_ends(caplog):
    storage = FailingStorage(10**9, PermissionError(errno.EACCES, "denied"))
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"write notes, tried again for 2 s: .* denied; bring the storage"):
        Patience(2.0).keep_trying("write notes", storage.write)
    assert time.monotonic() - started >= 2 and storage.calls > 2


def test_no_patience_asks_once():
    storage = FailingStorage(1, OSError("gone"))
    with pytest.raises(StorageError):
        Patience(0).keep_trying("write notes", storage.write)
    assert storage.calls == 1


def test_what_is_no_failure_of_storage_is_raised_at_once():
    with pytest.raises(ZeroDivisionError):
        MANY_SECONDS.keep_trying("divide", lambda: 1 // 0)


def test_a_full_disk_stops_with_what_to_free_and_the_checkpoint_before_stays_whole(small_disk):
    store = CheckpointStore(str(small_disk / "checkpoints"), keep=2, patience=Patience(0.1))
    store.save(1, {"a": bytes(100_000)})
    store.save(2, {"a": bytes(100_000)})
    with pytest.raises(StorageError, match=r"checkpoint iteration_000003 \(0.1 MB\).*disk is full: free some"):
        store.save(3, {"a": bytes(100_000)})
    found = store.newest()
    assert found.name == "iteration_000002" and "iteration_000003 is passed over" in found.explanation()


def test_a_disk_that_gets_room_again_gets_the_checkpoint(small_disk):
    store = CheckpointStore(str(small_disk / "checkpoints"), keep=1, patience=MANY_SECONDS)
    ballast = fill(small_disk)
    threading.Timer(0.1, ballast.unlink).start()
    store.save(1, {"a": bytes(1000)})
    assert store.newest().files == {"a": bytes(1000)}


def test_a_file_that_may_not_grow_is_a_full_disk_too(tmp_path):
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=2)
    store.save(1, {"a": b"small"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(StorageError, match="the disk is full"):
            store.save(2, {"a": bytes(2**21)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.newest().files == {"a": b"small"}


def test_a_run_folder_that_is_gone_for_a_while_is_not_made_anew(tmp_path):
    """As when a share is not mounted: what is written in its place would be lost under it."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    store = CheckpointStore(str(folder / "checkpoints"), keep=2, patience=MANY_SECONDS)
    store.save(1, {"a": b"1"})
    metrics = MetricsFile(folder / "metrics.jsonl")
    metrics.append({"iteration": 0})
    folder.rename(elsewhere)
    threading.Timer(0.1, lambda: elsewhere.rename(folder)).start()
    MANY_SECONDS.keep_trying("write metrics", lambda: metrics.append({"iteration": 1}))
    store.save(2, {"a": b"2"})
    assert store.names() == ["iteration_000001", "iteration_000002"]
    assert metrics.read() == [{"iteration": 0}, {"iteration": 1}]


def test_metrics_that_did_not_fit_leave_no_half_line_behind(small_disk):
    metrics = MetricsFile(small_disk / "metrics.jsonl")
    line = {"padding": "x" * 3000}
    metrics.append({"iteration": 0} | line)
    ballast = fill(small_disk)
    # The last page of the file has some room.
    written = 1 + until_it_fails(lambda number: metrics.append({"iteration": 1 + number} | line))
    ballast.unlink()
    metrics.append({"iteration": written} | line)
    assert [read["iteration"] for read in metrics.read()] == list(range(written + 1))


def test_a_journal_outlasts_a_full_disk(small_disk):
    """TensorBoard's events too: with their own writer's thread dead, the journal would wait for it for ever."""
    journal = Journal(str(small_disk), miniature_settings(Path("a-model"), checkpoint={"retry_seconds": 60}))
    journal.begin(0)
    journal.record({"iteration": 0, "reward": 0.5})
    ballast = fill(small_disk)
    threading.Timer(0.1, ballast.unlink).start()
    for iteration in range(1, 30):
        journal.record({"iteration": iteration, "padding": "x" * 1000} | {f"value {n}": 1.0 for n in range(30)})
    assert [line["iteration"] for line in journal.since(0)] == list(range(30))
    assert {event.step for event in events_in(small_disk / "tensorboard") if event.summary.value} == set(range(30))


def test_events_go_on_in_another_file_after_a_failure(small_disk):
    events = EventFile(small_disk / "tensorboard")
    events.add(3, {"reward": 0.5})
    ballast = fill(small_disk)
    written = 4 + until_it_fails(lambda number: events.add(4 + number, {"reward": 4.0 + number}))
    ballast.unlink()
    events.add(written, {"reward": float(written)})
    assert len(list((small_disk / "tensorboard").iterdir())) == 2
    found = [event for event in events_in(small_disk / "tensorboard") if event.summary.value]
    assert [event.step for event in found] == list(range(3, written + 1))
    assert found[-1].summary.value[0].simple_value == written


def events_in(directory: Path) -> list[Event]:
    """The events of all files that are whole: a length, its checksum, the event, its checksum."""
    events = []
    for file in sorted(directory.iterdir()):
        content, position = file.read_bytes(), 0
        while position + 12 <= len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            record = content[position + 12 : position + 12 + length]
            position += length + 16
            if position <= len(content):
                events.append(Event.FromString(record))
    return events
