"""A run in an object store has one process at a time."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import boto3
import pytest
from eventually import wait_until

from pipeline.bucket_lock import Rhythm, held_alone_in_bucket
from pipeline.object_storage import working_folder

pytest_plugins = ["s3_server"]

# Nobody is taken for dead, however slow these cores are.
PATIENT = Rhythm(beat=0.2, silence=600.0, settling=1.0, patience=3.0)
QUICK = Rhythm(beat=0.2, silence=2.0, settling=0.1)

HOLDER = """
import sys, time
from pipeline.bucket_lock import Rhythm, held_alone_in_bucket

with held_alone_in_bucket(sys.argv[1], Rhythm(beat=0.2)):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(bucket: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds runs/one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDER, f"{bucket}/runs/one"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def signs() -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="bucket").get("Contents", [])
    return [entry["Key"] for entry in found if entry["Key"].endswith(".lock")]


def test_a_run_that_another_process_works_on_is_refused_until_that_is_killed(bucket, holder):
    with pytest.raises(ValueError, match=rf"process {holder.pid} on .* is at work on {bucket}/runs/one; wait for its"):
        held_alone_in_bucket(f"{bucket}/runs/one", PATIENT).__enter__()
    assert signs() == ["runs/.one.lock"], "who was refused took the other's sign back"
    with held_alone_in_bucket(f"{bucket}/runs/two", QUICK):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert signs() == ["runs/.one.lock"], "it had no time to take its sign back"
    with held_alone_in_bucket(f"{bucket}/runs/one", QUICK):
        pass
    assert signs() == []


def fail_in(location: str) -> None:
    with working_folder(location, 0):
        assert signs() == [".run.lock"]
        raise ZeroDivisionError


def test_a_run_is_free_after_the_work_even_if_that_failed(bucket, caplog):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail_in(f"{bucket}/run")
    assert signs() == []
    assert "may be at work" not in caplog.text, "the second one had to wait"


def test_of_those_who_come_in_the_same_moment_one_gets_it(bucket):
    together, done = threading.Barrier(4), threading.Event()
    held: list[int] = []
    refused: list[str] = []

    def come(number: int) -> None:
        together.wait()
        try:
            with held_alone_in_bucket(f"{bucket}/wanted", PATIENT):
                held.append(number)
                done.wait()
        except ValueError as error:
            refused.append(str(error))

    comers = [threading.Thread(target=come, args=(number,), daemon=True) for number in range(4)]
    for comer in comers:
        comer.start()
    try:
        wait_until(lambda: len(held) + len(refused) == 4)
        assert len(held) == 1
    finally:
        done.set()
    for comer in comers:
        comer.join()


def test_a_store_that_fails_for_a_while_costs_nobody_the_run(tmp_path, caplog):
    store = tmp_path / "store"
    store.mkdir()
    with held_alone_in_bucket(f"file://{store}/run", QUICK):
        store.rename(tmp_path / "away")
        wait_until(lambda: "could not say that" in caplog.text)
        store.mkdir()
        wait_until((store / ".run.lock").is_file)
    assert not (store / ".run.lock").exists()


def test_a_store_that_refuses_from_the_beginning_is_told_of(tmp_path):
    with pytest.raises(
        ValueError, match=r"has to read and write .*/nowhere/\.run\.lock, and cannot: .*[Nn]o such file"
    ):
        held_alone_in_bucket(f"file://{tmp_path}/nowhere/run", QUICK).__enter__()


def test_a_process_that_was_taken_for_dead_is_stopped(tmp_path, caplog):
    sign, lost = tmp_path / ".run.lock", threading.Event()

    def is_lost() -> bool:
        if not lost.is_set():  # a sign that was on its way may come over the first one
            sign.write_text("another's")
        return lost.is_set()

    with held_alone_in_bucket(f"file://{tmp_path}/run", QUICK, on_loss=lost.set):
        wait_until(is_lost)
    assert "another process has taken" in caplog.text
    assert sign.read_text() == "another's", "it is not this process's to take back"
