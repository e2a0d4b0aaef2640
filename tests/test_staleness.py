"""Rollouts one iteration ahead of the learner: the actors against one process, taken up again, and what is refused."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import ray
import torch
from crew_fixtures import fresh, metrics_in
from eventually import wait_until
from in_process import align_in_process
from late_rollout_worker import LateRolloutWorker
from ray.actor import ActorHandle
from scoring_server import ScoringServer
from settings import miniature_settings

from actors.crew import Crew
from actors.failure import LastingFailureError
from actors.fleet import start_fleet
from actors.inputs import read_inputs
from actors.training import train
from actors.weights import checksum_of
from pipeline.config import RunSettings
from pipeline.rollout_policy import RolloutPolicy
from pipeline.staleness import MixedRecordsError, StaleRecordsError, check_iteration, policy_age
from pipeline.weighting import Normalisation

pytest_plugins = ["crew_fixtures", "model_fixtures"]


LATE_S = 3.0
"""Far longer than the learner takes from where it begins to its first iteration."""


@pytest.fixture(scope="module")
def server() -> Iterator[ScoringServer]:
    with ScoringServer() as server:
        yield server


@pytest.fixture(scope="module")
def settings(miniature_model: Path, miniature_clip: Path, server: ScoringServer) -> RunSettings:
    """Two rewards in running units, so that the normalisation of the older policy matters too."""
    remote = {"name": "impatient_reward:ImpatientReward", "path": server.url, "weight": 0.5}
    return miniature_settings(
        miniature_model,
        iterations=5,
        reward=[{"name": "clip", "path": str(miniature_clip)}, remote],
        reward_normalisation="running",
        rollout={"max_staleness": 1},
        records={"save": True},
        # A grid is no part of an iteration either, and neither is what is waited for it.
        samples={"every": 1000, "count": 4},
    )


@pytest.fixture(scope="module")
def expected(settings: RunSettings) -> list[str]:
    """The checksum of every published adapter, from one process with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    published = align_in_process(settings)
    torch.set_num_threads(threads)
    return [checksum_of(adapter) for adapter in published[1:]]


@pytest.mark.slow
def test_actors_one_iteration_ahead_equal_one_process_though_a_reward_server_died_between(
    settings, expected, server, crew, tmp_path
):
    """The second half has a new store and a new journal: the older policy can come from the checkpoint alone."""
    inputs = read_inputs(settings)
    killer = threading.Thread(target=kill_after_two_iterations, args=(server, tmp_path / "metrics.jsonl"))
    killer.start()
    with pytest.raises(LastingFailureError, match=f"no answer from {server.url} in 3 tries"):
        train(settings, inputs, fresh(crew, tmp_path, settings), tmp_path)
    killer.join()
    kept = metrics_in(tmp_path)
    assert 2 <= len(kept) < settings.iterations
    server.start_again()
    opened: list[float] = []
    opener = threading.Thread(target=let_workers_load_when_the_learner_has_begun_again, args=(tmp_path, opened))
    opener.start()
    late = replace(fresh(crew, tmp_path, settings), rollout_fleet=late_rollouts(settings, crew, tmp_path))
    train(settings, inputs, late, tmp_path)
    opener.join()
    ray.kill(late.rollout_fleet)
    metrics = metrics_in(tmp_path)
    resumed = metrics[len(kept)]
    assert resumed["time"] - resumed["seconds"] >= opened[0], "what workers load was counted as rollouts"
    assert metrics[: len(kept)] == kept, "what was learnt before was learnt again"
    assert [line["adapter_sha256"] for line in metrics] == expected
    assert [line["policy_age"] for line in metrics] == [0, 1, 1, 1, 1]
    versions = [
        set(pa.parquet.read_table(path)["policy_version"].to_pylist())
        for path in sorted((tmp_path / "records").iterdir())
    ]
    assert versions == [{0}, {0}, {1}, {2}, {3}]


def late_rollouts(settings: RunSettings, crew: Crew, directory: Path) -> ActorHandle:
    """A fleet whose worker loads when it is let."""
    return start_fleet(
        "rollout",
        LateRolloutWorker,
        actor_args=(settings, crew.reward_fleet, directory / "go"),
        actor_options={"num_cpus": 0},
        calls_per_worker=settings.rollout.batches_in_flight,
    )


def let_workers_load_when_the_learner_has_begun_again(directory: Path, opened: list[float]) -> None:
    wait_until(lambda: (directory / "log.jsonl").read_text().count("the learner begins") >= 2, interval_s=0.01)
    time.sleep(LATE_S)
    opened.append(time.time())
    (directory / "go").touch()


def kill_after_two_iterations(server: ScoringServer, metrics: Path) -> None:
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, interval_s=0.01)
    server.kill()


def records_of(*versions: int) -> pa.Table:
    return pa.table({"policy_version": pa.array(versions, pa.int64())})


def test_the_age_of_records_is_that_of_the_oldest():
    assert policy_age(records_of(3, 3), 3, max_staleness=0) == 0
    assert policy_age(records_of(4, 3, 4), 4, max_staleness=1) == 1


@pytest.mark.parametrize(("versions", "staleness"), [((2, 3), 0), ((1, 3), 1), ((4, 3), 1)])
def test_records_that_are_too_old_or_of_the_future_are_refused(versions, staleness):
    with pytest.raises(StaleRecordsError, match=f"version 3 .* versions {min(versions)} to {max(versions)}"):
        policy_age(records_of(*versions), 3, staleness)


def test_records_that_were_made_again_for_the_next_iteration_are_refused():
    check_iteration(pa.table({"iteration": [3, 3]}), 3)
    with pytest.raises(MixedRecordsError, match="records of iterations 3 to 4 for iteration 3"):
        check_iteration(pa.table({"iteration": [3, 4]}), 3)


@pytest.mark.parametrize("normalisation", [None, Normalisation((1.0, 0.5), (0.1, -3.0), (1 / 3, 7.0))])
def test_a_rollout_policy_is_read_back_to_the_last_bit(normalisation):
    policy = RolloutPolicy(5, np.random.default_rng(0).standard_normal(100).astype(np.float32), normalisation)
    found = RolloutPolicy.from_bytes(policy.to_bytes())
    assert found.version == 5 and found.normalisation == normalisation
    assert found.adapter.dtype == np.float32 and np.array_equal(found.adapter, policy.adapter)


def test_only_one_version_of_staleness_is_known(miniature_model):
    with pytest.raises(ValueError, match="max_staleness"):
        miniature_settings(miniature_model, rollout={"max_staleness": 2})
