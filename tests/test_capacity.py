"""The capacity check: exact packing, and what it knows of real fixed and autoscaling clusters."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from eventually import PATIENCE_S
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.capacity import Growth, WorkerRequest, check_capacity, check_object_store, find_growth, fits
from actors.cluster import (
    FEW_REMEMBERED_TASKS,
    KEPT_PROCESSES,
    ClusterInfo,
    _cluster_runtime_env,
    connect,
    disconnect,
    refuse_fleeting_folder,
    refuse_relative_folder,
    start_ray,
)
from benchmarks.chaos.autoscaling_head import autoscaling_head

REPOSITORY = Path(__file__).resolve().parents[1]
EIGHT_GPUS = {"CPU": 32.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("requests", "nodes", "expected"),
    [
        # The sums fit, but no node holds the last worker.
        ([("rollout", 3, {"CPU": 3})], [{"CPU": 5}, {"CPU": 5}], False),
        ([("rollout", 2, {"CPU": 3})], [{"CPU": 5}, {"CPU": 5}], True),
        # Largest first fails here: 4+3+3 and 4+4+2 must be found.
        ([("a", 3, {"CPU": 4}), ("b", 2, {"CPU": 3}), ("c", 1, {"CPU": 2})], [{"CPU": 10}, {"CPU": 10}], True),
        ([("a", 3, {"CPU": 4}), ("b", 3, {"CPU": 3})], [{"CPU": 10}, {"CPU": 10}], False),
        # A fraction of a GPU lies on one GPU.
        ([("rollout", 3, {"GPU": 0.6})], [{"GPU": 2}], False),
        ([("rollout", 2, {"GPU": 0.6}), ("reward", 2, {"GPU": 0.4})], [{"GPU": 2}], True),
        ([("rollout", 1, {"GPU": 0.3}), ("reward", 1, {"GPU": 0.3}), ("learner", 1, {"GPU": 0.4})], [{"GPU": 1}], True),
        # A GPU cut into fractions serves no whole-GPU worker.
        ([("learner", 1, {"GPU": 1}), ("reward", 1, {"GPU": 0.1})], [{"GPU": 1}], False),
        ([("learner", 7, {"GPU": 1}), ("reward", 10, {"GPU": 0.1})], [EIGHT_GPUS], True),
        ([("learner", 7, {"GPU": 1}), ("reward", 11, {"GPU": 0.1})], [EIGHT_GPUS], False),
        # Resources that a node does not have, or that nobody wants.
        ([("reward", 1, {"CPU": 0.0, "GPU": 0.0})], [{"CPU": 1}], True),
        ([("reward", 1, {"TPU": 1})], [{"CPU": 1}], False),
        ([("reward", 0, {"GPU": 4})], [{"CPU": 1}], True),
        ([("reward", 1, {})], [], False),
        # A large cluster.
        ([("rollout", 240, {"CPU": 4, "GPU": 1}), ("reward", 64, {"CPU": 1, "GPU": 0.25})], [EIGHT_GPUS] * 32, True),
        ([("rollout", 241, {"CPU": 4, "GPU": 1}), ("reward", 64, {"CPU": 0, "GPU": 0.25})], [EIGHT_GPUS] * 32, False),
    ],
)
def test_packing(requests, nodes, expected):
    assert fits([WorkerRequest(*request) for request in requests], nodes) is expected


def fits_by_trying_all(workers: list[int], nodes: list[int]) -> bool:
    return any(
        all(
            sum(w for w, place in zip(workers, places, strict=True) if place == n) <= nodes[n]
            for n in range(len(nodes))
        )
        for places in itertools.product(range(len(nodes)), repeat=len(workers))
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.lists(st.integers(1, 10), min_size=1, max_size=3))
def test_packing_agrees_with_trying_all(workers, nodes):
    requests = [WorkerRequest("worker", 1, {"CPU": float(size)}) for size in workers]
    assert fits(requests, [{"CPU": float(size)} for size in nodes]) == fits_by_trying_all(workers, nodes)


def test_a_fixed_cluster_refuses_what_it_can_never_hold(ray_session: ClusterInfo):
    cpus = ray_session.resources["CPU"]
    check_capacity([WorkerRequest("rollout", int(cpus), {"CPU": 1.0})])
    message = (
        rf"asks for 1 x learner with 1 CPU; {cpus:g} x rollout with 1 CPU, 0.5 GPU, but this cluster of fixed size has "
        rf"1 x node with {cpus:g} CPU, \d+ GPU. .*Lower the pools' min_workers"
    )
    with pytest.raises(ValueError, match=message):
        check_capacity(
            [
                WorkerRequest("learner", 1, {"CPU": 1.0}),
                WorkerRequest("rollout", int(cpus), {"CPU": 1.0, "GPU": 0.5}),
            ]
        )
    with pytest.raises(ValueError, match="No node is large enough for one reward worker"):
        check_capacity([WorkerRequest("reward", 1, {"CPU": cpus + 1})])
    assert find_growth(1) == Growth(autoscales=False)


def test_an_object_store_that_an_iteration_fills_is_refused_with_the_number_to_set(ray_session: ClusterInfo):
    store = int(ray_session.resources["object_store_memory"])
    check_object_store(store, trajectories=64)
    message = (
        rf"keeps {4 * store} bytes in Ray's object store at once, and the driver's holds {store}; lower "
        rf"rollout.trajectories from 64 to 16, or start Ray with `ray start --head --object-store-memory={4 * store}`"
    )
    with pytest.raises(ValueError, match=message):
        check_object_store(4 * store, trajectories=64)


def test_a_ray_of_our_own_keeps_processes_for_the_next_iteration_and_remembers_few_tasks(
    ray_session: ClusterInfo,
) -> None:
    for name, variables in (("raylet", KEPT_PROCESSES), ("gcs_server", FEW_REMEMBERED_TASKS)):
        (process,) = [process for process in psutil.Process().children() if name in process.name()]
        assert process.environ().items() >= variables.items()


def test_connecting_twice_changes_nothing(ray_session: ClusterInfo):
    assert ray_session.resources["CPU"] >= 8
    assert Path(ray_session.log_directory).is_dir()
    again = connect(cpus_asked=1000)
    assert again.mode == "already connected"
    assert again.address == ray_session.address
    disconnect(again)
    assert ray.is_initialized()
    json.dumps(asdict(ray_session))


@pytest.fixture(params=["v1", "v2"])
def autoscaling_cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of the head of a real autoscaling cluster on this machine, run by the autoscaler of that version."""
    with autoscaling_head(request.param, worker={"CPU": 4}, max_workers=3, RAY_AUTH_MODE="disabled") as address:
        yield address


ASK_THE_CLUSTER = """
import json
from dataclasses import asdict
import actors.capacity
from actors.capacity import WorkerRequest, _published_status_shows_autoscaling
from actors.capacity import check_capacity, check_object_store, find_growth
from actors.cluster import connect
actors.capacity.STATUS_PATIENCE_S = 240.0
info = connect()
growth = find_growth(8)
check_capacity([WorkerRequest("rollout", 3, {"CPU": 4.0})])  # none of them fits now
try:
    check_capacity([WorkerRequest("rollout", 4, {"CPU": 4.0})])
    refusal = ""
except ValueError as error:
    refusal = str(error)
try:
    check_object_store(10**15, trajectories=64)
    no_room = ""
except ValueError as error:
    no_room = str(error)
shown = _published_status_shows_autoscaling()
print(json.dumps([info.mode, info.resources["CPU"], asdict(growth), refusal, no_room, shown]))
"""


@pytest.mark.slow
def test_an_autoscaling_cluster_is_measured_by_what_it_can_grow_to(autoscaling_cluster: str):
    environment = os.environ | {"RAY_ADDRESS": autoscaling_cluster, "RAY_AUTH_MODE": "disabled"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, "-c", ASK_THE_CLUSTER]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    mode, cpus_now, growth, refusal, no_room, status_shows_autoscaling = json.loads(done.stdout.splitlines()[-1])
    assert mode == "joined"
    assert cpus_now < 4, "no node has been started yet: what is measured is growth"
    assert growth == {"autoscales": True, "largest": [{"CPU": 1}, {"CPU": 4}, {"CPU": 4}, {"CPU": 4}]}
    assert (
        "asks for 4 x rollout with 4 CPU, but this autoscaling cluster can grow to at most 1 x node with 1 CPU"
        in refusal
    )
    assert "the driver's holds" in no_room, "nodes that will join do not enlarge the driver's object store"
    assert status_shows_autoscaling is True
    raylets = [process for process in psutil.Process().children(recursive=True) if process.name() == "raylet"]
    (raylet,) = [process for process in raylets if f"--gcs-address={autoscaling_cluster}" in process.cmdline()]
    assert raylet.environ().items() >= KEPT_PROCESSES.items()


def test_results_in_the_uploaded_copy_of_a_submitted_job_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ValueError, match=r"runs/demo would lie in the job's copy .* output_dir=/shared/runs"):
        refuse_fleeting_folder(Path("runs/demo"))
    refuse_fleeting_folder(tmp_path / "runs" / "demo")
    with pytest.raises(ValueError, match=r"s3:/bucket/runs is no path; only jobs/align.py writes to object storage"):
        refuse_fleeting_folder(Path("s3://bucket/runs"))


def test_a_relative_folder_is_refused_where_processes_work_in_copies_of_this_one(ray_session: ClusterInfo):
    joined = replace(ray_session, mode="joined")
    with pytest.raises(ValueError, match=rf"give absolute paths, such as output_dir={Path.cwd() / 'runs'}"):
        refuse_relative_folder(joined, Path("runs/mine"))
    refuse_relative_folder(joined, Path("/shared/runs/mine"))
    refuse_relative_folder(ray_session, Path("runs/mine"))


@pytest.mark.parametrize(("slow_starts", "starts"), [(0, 1), (2, 3), (3, 3)])
def test_a_ray_that_is_too_slow_to_start_is_started_again(
    monkeypatch: pytest.MonkeyPatch, slow_starts: int, starts: int
) -> None:
    asked: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        asked.append(options)
        if len(asked) <= slow_starts:
            raise Exception("The current node timed out during startup. This could happen because some of the raylet")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(Exception, match="timed out") if slow_starts == 3 else contextlib.nullcontext():
        start_ray(num_cpus=2)
    assert len(asked) == starts and all(options["address"] == "local" for options in asked)


def test_a_ray_that_fails_otherwise_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        asked.append(options)
        raise OSError("no space left on device")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(OSError, match="no space left"):
        start_ray()
    assert len(asked) == 1


def test_a_ray_client_address_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ValueError, match="ray job submit"):
        connect()


def test_a_driver_on_a_cluster_sends_modules_only_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert "py_modules" not in _cluster_runtime_env([])
    assert _cluster_runtime_env([tmp_path / "rewards.py"])["py_modules"] == [str(tmp_path / "rewards.py")]
