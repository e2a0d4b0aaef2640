"""The whole loop of actors against the same loop in one process, with and without lost workers."""

import json
import re
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
import torch.distributed as dist
from crew_fixtures import fresh, metrics_in
from eventually import PATIENCE_S, wait_until
from hanging_learner import that_hangs_once
from in_process import align_in_process, load_policy
from numpy.typing import NDArray
from settings import miniature_settings
from torch import multiprocessing
from whole_records import keys_expected, keys_found

import actors.training
from actors.alignment import take_result
from actors.crew import Crew, check_room, start_pool
from actors.inputs import read_inputs
from actors.learner import common_hash
from actors.metrics import exported_names
from actors.rollout import RolloutWorker
from actors.training import train
from actors.weights import checksum_of, load_weights
from pipeline.adapter import flatten_adapter
from pipeline.config import RunSettings
from pipeline.learning import Learner

pytest_plugins = ["crew_fixtures", "model_fixtures"]

pytestmark = pytest.mark.slow

LATENT_SHAPE = (4, 8, 8)

# More than a learner worker takes to load the miniature model while others start.
LEARNER_TIMEOUT_S = 60.0

# More than a batch takes on cores that other tests share, and less than the 30 s after which Ray itself misses a
# process that is stopped as a whole. One that hangs in a computation or a driver answers Ray all the while.
ROLLOUT_TIMEOUT_S = 20.0

# float32 rounding of a gradient's sum, carried through AdamW: a hundredth of what one step moves a weight.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def settings(miniature_model: Path, miniature_clip: Path) -> RunSettings:
    """TailorPO-G on two rollout workers with two batches each, one reward actor, one learner worker."""
    return miniature_settings(
        miniature_model,
        iterations=3,
        reward={"name": "clip", "path": str(miniature_clip)},
        method={"guidance": {}},
        rollout={"trajectories": 16, "batch_size": 4, "min_workers": 2, "max_workers": 2},
        records={"save": True},
    )


@pytest.fixture(scope="module")
def expected(settings: RunSettings) -> list[NDArray[np.float32]]:
    """Every published version of the adapter, from one process with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    published = align_in_process(settings)
    torch.set_num_threads(threads)
    return published


def hashes(directory: Path) -> list[str]:
    return [json.loads(line)["adapter_sha256"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(settings: RunSettings, crew: Crew, tmp_path_factory: pytest.TempPathFactory) -> tuple[Crew, Path]:
    """A run that nothing happened to, whose actors still live, and its folder."""
    directory = tmp_path_factory.mktemp("finished")
    run = fresh(crew, directory, settings)
    train(settings, read_inputs(settings), run, directory)
    return run, directory


def test_the_actors_equal_one_process_bit_for_bit(settings, expected, finished):
    run, directory = finished
    assert hashes(directory) == [checksum_of(adapter) for adapter in expected[1:]]
    assert np.array_equal(load_weights(ray.get(run.store.current.remote())), expected[-1])
    assert np.abs(expected[-1] - expected[0]).max() > 100 * ROUNDING, "nothing was learnt, so nothing was compared"
    assert keys_found(directory) == keys_expected(settings)
    records = ray.data.read_parquet(str(directory / "records"))
    assert records.take_batch(3)["winner"].shape == (3, *LATENT_SHAPE)


def test_prometheus_finds_every_metric_of_the_run(settings, finished):
    """The agent on each node serves what actors have told Ray, which passes it on every ten seconds."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[tuple[str, frozenset[str]], float] = {}
    run = f'run="{settings.name}"'
    trajectories = settings.iterations * settings.rollout.trajectories
    batches = trajectories / settings.rollout.batch_size

    def total(name: str, *labels: str) -> float:
        return sum(value for (key, tags), value in found.items() if key == name and {run, *labels} <= tags)

    def all_is_there() -> bool:
        """Not the names alone: what the agent was told ten seconds ago may lie an iteration behind."""
        found.clear()
        found.update(scraped(address))
        return (
            {name for name, _ in found} >= exported_names()
            and total("ray_tailorpo_iterations") == settings.iterations
            and total("ray_tailorpo_fleet_calls_total", 'fleet="rollout"') >= batches
        )

    wait_until(all_is_there)
    # A worker is killed when the run ends, and with it goes what it counted since Ray last passed its numbers on.
    counted = total("ray_tailorpo_trajectories_total")
    assert 0 < counted <= trajectories and counted % settings.rollout.batch_size == 0
    assert total("ray_tailorpo_fleet_ready", 'fleet="rollout"') == settings.rollout.min_workers
    assert total("ray_tailorpo_learner_starts_total") == 1 and total("ray_tailorpo_policy_age") == 0
    last = max(file.stat().st_mtime for file in (finished[1] / "checkpoints").glob("*/manifest.json"))
    assert total("ray_tailorpo_last_checkpoint_timestamp_seconds") == pytest.approx(last, abs=60)


def scraped(address: str) -> dict[tuple[str, frozenset[str]], float]:
    """Every sample of this project's at a Prometheus endpoint, by its name and labels."""
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:  # the agent has not begun to serve yet
        return {}
    samples = (re.fullmatch(r"(ray_tailorpo_\w+)\{(.*)\} (\S+)", line) for line in lines)
    return {(sample[1], frozenset(sample[2].split(","))): float(sample[3]) for sample in samples if sample}


def test_two_learner_workers_equal_one_up_to_rounding_though_one_of_them_hangs(
    settings, expected, crew, tmp_path, monkeypatch
):
    """In the second iteration, in which the other one waits for it; Ray Train starts two anew."""
    run = fresh(crew, tmp_path, settings)
    learner = settings.learner.model_copy(update={"num_workers": 2, "timeout_seconds": LEARNER_TIMEOUT_S})
    pair = settings.model_copy(update={"learner": learner})
    steps_an_iteration = settings.records_per_iteration // learner.minibatch_size
    hung = tmp_path / "hung"
    monkeypatch.setattr(actors.training, "_train_worker", that_hangs_once(hung, rank=1, step=steps_an_iteration))
    train(pair, read_inputs(pair), run, tmp_path)
    assert hung.exists()
    found = load_weights(ray.get(run.store.current.remote()))
    np.testing.assert_allclose(found, expected[-1], rtol=0, atol=ROUNDING)
    assert len(hashes(tmp_path)) == settings.iterations
    shares = sorted(path.name for path in (tmp_path / "records").iterdir())
    assert shares == [
        f"iteration_{iteration:06d}_worker_{rank:03d}.parquet" for iteration in range(3) for rank in range(2)
    ]
    assert keys_found(tmp_path) == keys_expected(pair)


def test_whatever_process_is_killed_the_run_ends_with_the_same_adapter(settings, expected, crew, tmp_path):
    """One after another: workers of both kinds in a call, weight store, journal, learner, Ray Train's controller."""
    lost_before = [ray.get(fleet.stats.remote()).lost for fleet in (crew.rollout_fleet, crew.reward_fleet)]
    killed: list[str] = []
    run = fresh(crew, tmp_path, settings)
    killer = threading.Thread(target=kill_one_after_another, args=(run, tmp_path, killed))
    killer.start()
    train(settings, read_inputs(settings), run, tmp_path)
    killer.join()
    workers = ["RolloutWorker.collect", "RewardActor.score"]
    assert killed == [*workers, "WeightStore", "Journal", "RayTrainWorker", "TrainController"]
    assert hashes(tmp_path) == [checksum_of(adapter) for adapter in expected[1:]]
    assert keys_found(tmp_path) == keys_expected(settings)
    for fleet, before in zip((crew.rollout_fleet, crew.reward_fleet), lost_before, strict=True):
        wait_until(lambda fleet=fleet, before=before: ray.get(fleet.stats.remote()).lost == before + 1)


def test_a_rollout_worker_that_hangs_is_replaced_and_the_adapter_is_the_same(settings, expected, crew, tmp_path):
    """Stopped in the midst of a batch: its process lives, and does not answer."""
    pool = settings.rollout.model_copy(update={"timeout_seconds": ROLLOUT_TIMEOUT_S})
    fleet = start_pool("rollout", RolloutWorker, (settings, crew.reward_fleet), pool, pool.batches_in_flight)
    run = replace(fresh(crew, tmp_path, settings), rollout_fleet=fleet)
    stopper = threading.Thread(target=stop_in_a_call, args=(tmp_path, "RolloutWorker.collect"), daemon=True)
    stopper.start()
    train(settings, read_inputs(settings), run, tmp_path)
    stopper.join()
    stats = ray.get(fleet.stats.remote())
    ray.kill(fleet)
    # More than one where cores are so slow that a worker that is at work takes as long.
    assert 1 <= stats.hung == stats.lost == stats.restarts, stats
    assert metrics_in(tmp_path)[-1]["hung/rollout"] >= 1
    assert hashes(tmp_path) == [checksum_of(adapter) for adapter in expected[1:]]
    assert keys_found(tmp_path) == keys_expected(settings)


def stop_in_a_call(directory: Path, call: str) -> None:
    """SIGSTOP, in the second iteration, the first process that is seen in a call of a method, and leave it so."""
    wait_for_the_first_iteration(directory)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for process in processes_of(call):
            process.suspend()
            if f"ray::{call}" in title_of(process):
                return
            process.resume()
        time.sleep(0.01)


def kill_one_after_another(crew: Crew, directory: Path, killed: list[str]) -> None:
    """SIGKILL in the second iteration, while rollouts are under way."""
    wait_for_the_first_iteration(directory)
    for name in ("RolloutWorker.collect", "RewardActor.score"):
        kill_in_a_call(name)
        killed.append(name)
    for name in ("WeightStore", "Journal", "RayTrainWorker", "TrainController"):
        wait_until(lambda: ray.get(crew.reward_fleet.stats.remote()).busy > 0, interval_s=0.01)
        kill_process_of(name)
        killed.append(name)


def wait_for_the_first_iteration(directory: Path) -> None:
    """Wait for its metrics."""
    metrics = directory / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1)


def kill_in_a_call(call: str) -> None:
    """SIGKILL the first process that is seen in a call of a method, stopped meanwhile so that the call cannot end."""
    dead = False
    while not dead:
        for process in processes_of(call):
            process.suspend()
            if dead := f"ray::{call}" in title_of(process):
                process.kill()
                process.wait(PATIENCE_S)
                break
            process.resume()


def kill_process_of(actor_class: str) -> None:
    """SIGKILL the newest process of an actor class, and wait until it is gone."""
    process = process_of(actor_class)
    process.kill()
    process.wait(PATIENCE_S)


def process_of(actor_class: str) -> psutil.Process:
    """The newest process of an actor class."""
    return max(processes_of(actor_class), key=lambda process: process.create_time())


def processes_of(title: str) -> list[psutil.Process]:
    """Of the actors of this test's own Ray, the raylet of which is a child of this process, those so called by Ray.

    Ray calls a process `ray::Class.method` while it is in a call, else `ray::Class`.
    """
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if f"ray::{title}" in title_of(process)]


def title_of(process: psutil.Process) -> str:
    """Its command line; empty where it has ended since it was listed."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_result_that_is_lost_with_the_weight_store_comes_from_the_last_checkpoint(settings, expected, crew, finished):
    _, directory = finished
    run = fresh(crew, directory, settings)  # its store is as empty as one that Ray has started anew
    ticket = take_result(settings, read_inputs(settings), run, directory)
    kill_process_of("WeightStore")
    assert np.array_equal(load_weights(ticket), expected[-1])


def test_adapters_that_come_apart_stop_the_run(settings, tmp_path):
    """Two learner workers in two processes: first with the same adapter, then with adapters of two seeds."""
    meeting_point = f"file://{tmp_path / 'meeting_point'}"
    spawned = multiprocessing.spawn(hash_as_rank, (meeting_point, settings), nprocs=1, join=False)
    learner = Learner(load_policy(settings), settings)
    dist.init_process_group("gloo", init_method=meeting_point, rank=0, world_size=2)
    try:
        assert common_hash(learner) == checksum_of(flatten_adapter(learner.policy))
        with pytest.raises(RuntimeError, match="adapters differ"):
            common_hash(learner)
    finally:
        dist.destroy_process_group()
        spawned.join()


def hash_as_rank(_: int, meeting_point: str, settings: RunSettings) -> None:
    """Rank 1: agrees the first time; the second time with an adapter of another seed."""
    dist.init_process_group("gloo", init_method=meeting_point, rank=1, world_size=2)
    common_hash(Learner(load_policy(settings), settings))
    with pytest.raises(RuntimeError, match="adapters differ"):
        common_hash(Learner(load_policy(settings.model_copy(update={"seed": 8})), settings))
    dist.destroy_process_group()


def test_an_elastic_learner_that_would_wait_for_ever_is_refused(settings, ray_session):
    """Ray Train would take the CPUs of the pools for the learner's."""
    cpus = ray.cluster_resources()["CPU"]
    learner = settings.learner.model_copy(update={"num_workers": 2, "min_workers": 1, "num_cpus": cpus / 2})
    with pytest.raises(ValueError, match="makes Ray Train ask for 2 workers, which the nodes could hold if they were"):
        check_room(settings.model_copy(update={"learner": learner}))
    check_room(settings.model_copy(update={"learner": learner.model_copy(update={"num_cpus": cpus * 0.6})}))


def test_more_workers_than_a_fixed_cluster_can_hold_are_refused(settings, ray_session):
    crowd = settings.rollout.model_copy(update={"min_workers": 999, "max_workers": 999, "num_cpus": 1.0})
    with pytest.raises(ValueError, match="this cluster of fixed size has") as refusal:
        check_room(settings.model_copy(update={"rollout": crowd}))
    assert "999" in str(refusal.value) and "rollout" in str(refusal.value)


def test_more_workers_than_there_is_memory_for_are_refused(settings, ray_session):
    """On a Ray that was started for the run, which is told of as many CPUs as they ask for."""
    crowd = settings.rollout.model_copy(update={"min_workers": 5000, "max_workers": 5000, "num_cpus": 0.001})
    with pytest.raises(ValueError, match=r"5000 of rollout and .* GiB of memory at the least, and .* fixed size"):
        check_room(settings.model_copy(update={"rollout": crowd}))
