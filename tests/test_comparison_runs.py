"""Many runs on one cluster: at once where there is room, in order, each followed, and none stopped by another."""

import json
import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from comparisons import plan_of
from eventually import PATIENCE_S

from actors.capacity import Growth, WorkerRequest
from actors.cluster import ClusterInfo
from actors.comparison import carry_out
from actors.failure import RunFailedError
from actors.room import check_room_at_once, requests_together, runs_with_room
from pipeline.comparison.loading import begun_together, divergence, is_finished
from pipeline.comparison.plan import PlannedRun
from pipeline.config import RunSettings
from pipeline.run_folder import SUMMARY_FILE, write_json, write_text


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    """Two variants with two seeds."""
    return plan_of(tmp_path).runs({"TailorPO": 0.01, "TailorPO, β 1": 0.01})


def stand_in(meeting: Path, failing: str, diverging: str, settings: RunSettings, folder: Path) -> None:
    """A run without networks; it ends when two of them have begun, and leaves what a run leaves."""
    write_text(meeting / settings.name, str(os.getpid()))
    deadline = time.monotonic() + PATIENCE_S
    while len(list(meeting.iterdir())) < 2:
        assert time.monotonic() < deadline, "the other run was never begun"
        time.sleep(0.05)
    if settings.name == failing:
        raise RunFailedError("the reward is down")
    if settings.name == diverging:
        raise RunFailedError("NonFiniteScoreError: nan", diverged=True)
    line = {"iteration": 0, "reward": 1.0, "loss": 0.5, "pairs": 4, "seconds": 2.0, "seconds_spent": 2.0}
    write_text(folder / "metrics.jsonl", json.dumps(line) + "\n")
    write_json(folder / SUMMARY_FILE, {})


@pytest.mark.slow
def test_runs_go_on_together_and_one_that_fails_stops_no_other(
    ray_session: ClusterInfo, runs: list[PlannedRun], tmp_path: Path
) -> None:
    said: list[str] = []
    write_json(runs[0].folder / SUMMARY_FILE, {})
    failing, diverging = runs[1], runs[3]
    make_run = partial(stand_in, tmp_path / "meeting", failing.settings.name, diverging.settings.name)
    failed = carry_out(runs, make_run, 2, said.append)

    assert list(failed) == [failing.folder]
    assert failed[failing.folder].startswith("the reward is down; details: ")
    assert "RunFailedError" in (failing.folder / "error.log").read_text()
    assert [is_finished(run) for run in runs] == [True, False, True, False]
    assert [divergence(run) for run in runs] == [None, None, None, "NonFiniteScoreError: nan"]
    assert f"4/4 {diverging.settings.name}: diverged: NonFiniteScoreError: nan" in said
    begun = {file.name: file.read_text() for file in (tmp_path / "meeting").iterdir()}
    assert begun.keys() == {run.settings.name for run in runs[1:]}, "a finished run was made again"
    assert begun[runs[1].settings.name] != begun[runs[2].settings.name], "they shared a process"

    assert [line for line in said if line.endswith("started")] == [
        f"{number}/4 {run.settings.name}: started" for number, run in enumerate(runs[1:], start=2)
    ]
    assert f"2/4 {failing.settings.name}: failed: {failed[failing.folder]}" in said
    (iteration,) = (line for line in said if f"{runs[2].settings.name}: iteration" in line)
    assert "iteration 1/3  reward 1.0000" in iteration
    assert list(carry_out(runs, make_run, 2, said.append)) == [failing.folder], (
        "the one that diverged is not tried again"
    )


def give_object_store(monkeypatch: pytest.MonkeyPatch, runs_that_fit: int) -> None:
    """One that holds the records of so many runs."""
    arithmetic = SimpleNamespace(object_store_bytes_at_once=10)
    monkeypatch.setattr("actors.room.run_arithmetic", lambda _settings: arithmetic)
    monkeypatch.setattr("actors.room.driver_object_store", lambda: 10 * runs_that_fit)


@pytest.mark.parametrize(
    ("cpus", "together"),
    # A run has a reward actor, a rollout worker and a learner of 0.1 CPU each; two CPUs stay free for each run.
    [([1.0], 1), ([4.0], 1), ([4.6], 2), ([2.3, 2.3], 2), ([2.3] * 9, 4)],
)
def test_as_many_runs_as_the_cluster_has_room_for(
    monkeypatch: pytest.MonkeyPatch, runs: list[PlannedRun], cpus: list[float], together: int
) -> None:
    monkeypatch.setattr("actors.room._nodes", lambda _most: [{"CPU": amount} for amount in cpus])
    give_object_store(monkeypatch, runs_that_fit=9)
    assert runs_with_room([run.settings for run in runs], at_most=4) == together


def test_the_records_of_runs_that_go_on_together_share_one_object_store(
    monkeypatch: pytest.MonkeyPatch, runs: list[PlannedRun]
) -> None:
    settings = [run.settings for run in runs]
    give_object_store(monkeypatch, runs_that_fit=2)
    monkeypatch.setattr("actors.room._nodes", lambda _most: [{"CPU": 100.0}])
    monkeypatch.setattr("actors.room.check_capacity", lambda _requests: None)
    assert runs_with_room(settings, at_most=4) == 2
    check_room_at_once(settings[:2])
    with pytest.raises(ValueError, match=r"3 runs at once keep 30 bytes .* holds 20: lower the comparison's"):
        check_room_at_once(settings[:3])


def test_room_is_counted_with_all_pools_at_their_largest(
    monkeypatch: pytest.MonkeyPatch, runs: list[PlannedRun]
) -> None:
    asked: list[list[WorkerRequest]] = []
    monkeypatch.setattr("actors.room._nodes", lambda _most: [])
    give_object_store(monkeypatch, runs_that_fit=9)
    monkeypatch.setattr("actors.room.fits", lambda requests, _nodes: bool(asked.append(requests)))
    small = runs[0].settings
    wide = small.model_copy(update={"rollout": small.rollout.model_copy(update={"max_workers": 8})})
    strong = small.model_copy(update={"learner": small.learner.model_copy(update={"num_gpus": 1.0})})
    assert runs_with_room([small, wide, strong], at_most=3) == 1
    (requests,) = asked
    by_role = {request.role: request for request in requests}
    assert by_role["rollout"].num_workers == 2 * 8
    assert by_role["learner"] == WorkerRequest("learner", 2, {"CPU": 0.1, "GPU": 1.0})


def test_more_runs_at_once_than_there_is_ever_room_for_are_refused(
    monkeypatch: pytest.MonkeyPatch, runs: list[PlannedRun]
) -> None:
    """Their pools would be placed first, and their learners would wait for ever."""
    nodes = [{"Alive": True, "Resources": {"CPU": 0.7}}]
    monkeypatch.setattr("actors.capacity.ray.nodes", lambda: nodes)
    monkeypatch.setattr("actors.capacity.find_growth", lambda max_nodes_per_type: Growth(False))
    give_object_store(monkeypatch, runs_that_fit=9)
    settings = [run.settings for run in runs]
    check_room_at_once(settings[:2])
    with pytest.raises(ValueError, match=r"3 runs at once find no room: .* asks for 3 x reward_actors with 0.1 CPU"):
        check_room_at_once(settings[:3])


def test_runs_of_different_variants_ask_together_for_what_each_asks_for(runs: list[PlannedRun]) -> None:
    small = runs[0].settings
    strong = small.model_copy(update={"learner": small.learner.model_copy(update={"num_gpus": 1.0})})
    requests = requests_together([small, strong, small])
    assert [tuple(request) for request in requests] == [
        ("reward_actors", 3, {"CPU": 0.1, "GPU": 0.0}),
        ("rollout", 3, {"CPU": 0.1, "GPU": 0.0}),
        ("learner", 2, {"CPU": 0.1, "GPU": 0.0}),
        ("learner", 1, {"CPU": 0.1, "GPU": 1.0}),
    ]


def test_a_phase_begins_with_the_first_of_its_runs_that_are_not_over(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    runs = plan.runs({cell.label: 0.01 for cell in plan.cells})
    (sweep, first) = begun_together(plan, 3)
    assert [run.folder for run in sweep] == [run.folder for run in plan.sweep_runs[:3]]
    assert [run.folder for run in first] == [run.folder for run in runs[:3]]
    assert {run.cell for run in first} == {cell.label for cell in plan.cells}, "variants of one seed begin together"
    for run in (*plan.sweep_runs, runs[0]):
        write_json(run.folder / SUMMARY_FILE, {})
    assert [[run.folder for run in group] for group in begun_together(plan, 2)] == [[run.folder for run in runs[1:3]]]
