"""Checkpoints in storage: whatever happened to the newest, the newest that is whole is used, and it is said."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checkpoint_store import MANIFEST_FILE, CheckpointDamagedError, CheckpointStore, FoundCheckpoint

REPOSITORY = Path(__file__).resolve().parents[1]


def content(iteration: int) -> dict[str, bytes]:
    return {"learner.safetensors": bytes([iteration]) * 64, "position.json": b'{"next_iteration": %d}' % iteration}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Checkpoints 3 and 4, of which two are kept."""
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=2)
    for iteration in range(1, 5):
        store.save(iteration, content(iteration))
    return store


def file(store: CheckpointStore, iteration: int, name: str) -> Path:
    return Path(store.location) / f"iteration_{iteration:06d}" / name


def test_the_newest_is_found_and_as_many_as_asked_for_are_kept(store):
    assert store.newest() == FoundCheckpoint("iteration_000004", content(4))
    assert store.newest().explanation() == ""
    assert store.names() == ["iteration_000003", "iteration_000004"]
    folder = file(store, 4, "")
    assert {path.name for path in folder.iterdir()} == {*content(4), MANIFEST_FILE}


def test_a_run_without_checkpoints_begins_anew(tmp_path):
    assert CheckpointStore(str(tmp_path / "nowhere"), keep=2).newest() == FoundCheckpoint(None, None)


@pytest.mark.parametrize("name", [*content(4), MANIFEST_FILE])
def test_wherever_a_file_is_cut_off_the_checkpoint_before_is_used(store, name):
    path = file(store, 4, name)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = store.newest()
        assert (found.name, found.files) == ("iteration_000003", content(3)), length
        assert found.explanation().startswith("checkpoint iteration_000004 is passed over, its ")
        assert found.explanation().endswith(": going on from iteration_000003")
        assert "\n" not in found.explanation()


@pytest.mark.parametrize("name", [*content(4), MANIFEST_FILE])
def test_a_missing_file_is_noticed(store, name):
    file(store, 4, name).unlink()
    assert store.newest().name == "iteration_000003"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_is_ever_taken_up(tmp_path_factory, data):
    store = CheckpointStore(str(tmp_path_factory.getbasetemp() / "flipped"), keep=2)
    for iteration in (3, 4):
        store.save(iteration, content(iteration))
    path = file(store, 4, data.draw(st.sampled_from([*content(4), MANIFEST_FILE])))
    flipped = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(flipped) - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    # A bit in the white space of the manifest changes nothing that it says.
    assert store.newest().files in (content(3), content(4))
    if path.name != MANIFEST_FILE:
        assert store.newest().files == content(3)


def test_an_index_that_ray_train_left_broken_does_not_matter(store):
    (Path(store.location) / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.6')
    assert store.newest().files == content(4)


def test_none_whole_is_an_error_that_says_what_to_do(store):
    file(store, 4, "position.json").write_bytes(b"")
    file(store, 3, "learner.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="bring one back from a copy of the folder, or start a new run") as refusal:
        store.newest()
    message = str(refusal.value)
    assert store.location in message and "iteration_000004" in message and "iteration_000003" in message


def test_checkpoints_that_all_lost_their_manifests_are_no_new_beginning(store):
    for iteration in (3, 4):
        file(store, iteration, MANIFEST_FILE).unlink()
    with pytest.raises(ValueError, match="no checkpoint in"):
        store.newest()


def test_a_first_checkpoint_that_came_to_no_end_is_a_new_beginning(tmp_path):
    store = CheckpointStore(str(tmp_path), keep=2)
    store.save(1, content(1))
    file(store, 1, MANIFEST_FILE).unlink()
    found = store.newest()
    assert found.files is None and found.explanation().endswith("came to no end: beginning anew")


def test_a_run_that_catches_up_replaces_what_it_passed_over(store):
    file(store, 4, "position.json").write_bytes(b"")
    file(store, 3, "position.json").write_bytes(b"")
    store.save(3, content(3))
    assert store.names() == ["iteration_000003"]
    store.save(4, content(4))
    assert store.newest() == FoundCheckpoint("iteration_000004", content(4))


def test_only_whole_checkpoints_load(store):
    assert store.load("iteration_000003") == content(3)
    with pytest.raises(CheckpointDamagedError, match="has no manifest"):
        store.load("iteration_000099")


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL at six moments; each time a new process goes on from what is found."""
    program = f"""
import itertools
from pipeline.checkpoint_store import CheckpointStore
store = CheckpointStore({str(tmp_path)!r}, keep=2)
name = store.newest().name
for iteration in itertools.count(int(name[-6:]) + 1 if name else 1):
    store.save(iteration, {{"a": bytes([iteration % 256]) * 100_000, "b": b"%d" % iteration}})
    print(iteration, flush=True)
"""
    reached = 0
    for kill in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        promised = [int(process.stdout.readline()) for _ in range(3 + kill)][-1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = CheckpointStore(str(tmp_path), keep=2).newest()
        assert found.files is not None and promised > reached
        reached = int(found.files["b"])
        assert reached >= promised and found.files["a"] == bytes([reached % 256]) * 100_000


def test_where_the_run_folder_is_not_seen_nothing_is_looked_for(tmp_path):
    CheckpointStore(str(tmp_path / "checkpoints"), keep=1).check_visible()
    CheckpointStore("s3://bucket/runs/demo/checkpoints", keep=1).check_visible()
    with pytest.raises(ValueError, match=f"there is no {tmp_path}/elsewhere on .* a folder that all nodes share"):
        CheckpointStore(str(tmp_path / "elsewhere" / "checkpoints"), keep=1).check_visible()
