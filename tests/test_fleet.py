"""Fleet and leased calls: workers that are killed, fail, come late, and callers that die."""

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
import torch
from eventually import PATIENCE_S, wait_until
from fleet_fixtures import all_results, stats
from fleet_workers import Worker
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError

from actors.fleet import Fleet, start_fleet
from actors.fleet_state import FleetError
from actors.leasing import call_leased, call_leased_sync
from actors.watchdog import ends_within

pytest_plugins = ["fleet_fixtures"]


class HangingWorker:
    """The first `hanging` of them stop, as a process does whose GPU has; the others work."""

    def __init__(self, directory: Path, hanging: int) -> None:
        with (directory / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        self.hangs = len((directory / "pids").read_text().splitlines()) <= hanging

    def ready(self) -> bool:
        return True

    def work(self) -> int:
        if self.hangs:
            os.kill(os.getpid(), signal.SIGSTOP)
        return os.getpid()


LOADING_S = 3.0


class HangingLoader:
    """The first of them hangs while it loads, and holds Python's lock meanwhile; the others load at once."""

    def __init__(self, directory: Path) -> None:
        with ends_within(LOADING_S):
            if not (directory / "first").exists():
                (directory / "first").touch()
                re.fullmatch("(a+)+", "a" * 60 + "b")

    def ready(self) -> bool:
        return True


class BrokenGpuWorker:
    """The GPU of the first is broken, as a CUDA error leaves it: its process lives, and no call of it succeeds."""

    def __init__(self, directory: Path) -> None:
        self.is_broken = not (directory / "first").exists()
        (directory / "first").touch()

    def ready(self) -> bool:
        return True

    def work(self) -> int:
        if self.is_broken:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return os.getpid()

    def run_out_of_memory(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


class GarbledResultError(Exception):
    pass


class GarblingWorker:
    """Returns what cannot be used as long as `directory` holds files, one of which each such call takes away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def ready(self) -> bool:
        return True

    def work(self) -> int:
        for file in sorted(self.directory.iterdir()):
            file.unlink()
            raise GarbledResultError("not a number")
        return os.getpid()


class FailingWorker:
    def __init__(self, log: Path) -> None:
        with log.open("a") as file:
            file.write("x")
        raise FileNotFoundError("models/nowhere/unet is missing")

    def ready(self) -> bool:
        return True


class CrashingWorker:
    def __init__(self, log: Path) -> None:
        with log.open("a") as file:
            file.write("x")
        os._exit(1)

    def ready(self) -> bool:
        return True


def test_calls_on_a_worker_are_bounded(start):
    fleet = start(Worker, calls_per_worker=2)
    pids = asyncio.run(all_results(fleet, count=7, seconds=1.0))
    peak, order = call_leased_sync(fleet, "history")
    assert peak == 2
    assert sorted(order) == list(range(7))
    assert len(set(pids)) == 1
    wait_until(lambda: stats(fleet).leases == 0)


def test_leases_are_first_come_first_served(start):
    fleet = start(Worker, calls_per_worker=2, lease_ttl_s=1000.0)
    held = [ray.get(fleet.lease.remote()) for _ in range(2)]
    queue = []
    for number in range(1, 4):  # one after the other: an asynchronous actor may begin calls in any order
        queue.append(fleet.lease.remote())
        wait_until(lambda number=number: stats(fleet).waiting == number)
    for position, waiter in enumerate(queue):
        ray.get(fleet.release.remote(held[position].lease_id))
        held.append(ray.get(waiter, timeout=PATIENCE_S))
        later = queue[position + 1 :]
        assert not later or ray.wait(later, timeout=0.1)[0] == [], "one release serves one waiter"


def test_calls_go_to_the_least_busy_worker(start):
    fleet = start(Worker, max_workers=2, calls_per_worker=2, lease_ttl_s=1000.0)
    assert ray.get(fleet.wait_ready.remote(2, PATIENCE_S)) == 2
    leases = [ray.get(fleet.lease.remote()) for _ in range(4)]
    assert [lease.worker_id for lease in leases] == ["crew-0", "crew-1", "crew-0", "crew-1"]
    fifth = fleet.lease.remote()
    assert ray.wait([fifth], timeout=0.3)[0] == [], "no slot is left"
    assert (stats(fleet).busy, stats(fleet).leases, stats(fleet).waiting) == (2, 4, 1)
    ray.get(fleet.release.remote(leases[3].lease_id))
    assert ray.get(fifth).worker_id == "crew-1"


def test_a_call_comes_back_from_another_worker_when_its_own_is_killed(start):
    fleet = start(Worker, max_workers=2, lease_ttl_s=1000.0)
    ray.get(fleet.wait_ready.remote(2, PATIENCE_S))
    lease = ray.get(fleet.lease.remote())  # holds the second worker back, so that the call goes to a known one
    victim = ray.get(fleet.lease.remote())
    pid = ray.get(victim.worker.work.remote(0, 0.0))
    ray.get(fleet.release.remote(victim.lease_id))
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(call_leased_sync, fleet, "linger_in", pid)
        wait_until(lambda: stats(fleet).leases == 2)
        os.kill(pid, signal.SIGKILL)
        ray.get(fleet.release.remote(lease.lease_id))
        assert call.result(timeout=PATIENCE_S) not in (pid, None)
    assert ray.get(fleet.wait_ready.remote(2, PATIENCE_S)) == 2, "a new worker took the place of the lost one"
    after = stats(fleet)
    assert (after.lost, after.restarts, after.failed_starts) == (1, 1, 0)
    assert after.last_error


def test_the_death_of_an_idle_worker_is_noticed(start):
    fleet = start(Worker, health_interval_s=0.2)
    os.kill(call_leased_sync(fleet, "work", 0, 0.0), signal.SIGKILL)
    wait_until(lambda: stats(fleet).lost == 1)
    assert ray.get(fleet.wait_ready.remote(1, PATIENCE_S)) == 1


def test_a_constructor_that_raises_ends_the_fleet_with_its_error(start, tmp_path):
    log = tmp_path / "starts"
    fleet = start(FailingWorker, log, max_start_failures=2)
    with pytest.raises(FleetError, match=r"(?s)fleet crew failed to start .* 2 times .*models/nowhere/unet is missing"):
        call_leased_sync(fleet, "ready")  # waits from before the failure
    with pytest.raises(FleetError, match="models/nowhere/unet is missing"):
        call_leased_sync(fleet, "ready")  # comes after it
    with pytest.raises(FleetError, match="models/nowhere/unet is missing"):
        ray.get(fleet.wait_ready.remote())
    assert log.read_text() == "xx", "started twice and no more"


def test_processes_that_crash_while_starting_end_the_fleet(start, tmp_path):
    log = tmp_path / "starts"
    fleet = start(CrashingWorker, log, max_start_failures=2)
    with pytest.raises(FleetError, match="failed to start a worker 2 times in a row"):
        call_leased_sync(fleet, "ready")
    assert log.read_text() == "xx"


def test_errors_of_the_method_reach_the_caller_and_cost_no_worker(start):
    fleet = start(Worker)
    with pytest.raises(LookupError, match="no such prompt: 🐈") as caught:
        call_leased_sync(fleet, "refuse", "🐈")
    assert type(caught.value) is LookupError, "not one of Ray's wrappers"
    with pytest.raises(ActorDiedError):  # somebody else's death, not this worker's
        call_leased_sync(fleet, "call_a_dead_actor")
    after = stats(fleet)
    assert (after.ready, after.lost, after.restarts) == (1, 0, 0)


def test_a_call_that_kills_each_worker_gives_up(start):
    fleet = start(Worker)
    with pytest.raises(FleetError, match=r"die was lost 2 times, last on crew-1"):
        call_leased_sync(fleet, "die", max_attempts=2)
    wait_until(lambda: stats(fleet).lost == 2)


class HardOfHearingFleet(Fleet):
    async def report_dead(self, worker_id: str, error: str = "") -> None:
        await asyncio.sleep(0.5)
        await super().report_dead(worker_id, error)


def test_the_next_attempt_waits_until_the_loss_is_known(start, monkeypatch):
    monkeypatch.setattr("actors.fleet.Fleet", HardOfHearingFleet)
    fleet = start(Worker)
    with pytest.raises(FleetError, match=r"die was lost 2 times, last on crew-1"):
        call_leased_sync(fleet, "die", max_attempts=2)


@ray.remote(num_cpus=0, max_retries=0)
def lease_and_die(fleet: ActorHandle) -> None:
    ray.get(fleet.lease.remote())
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_lease_of_a_dead_caller_is_taken_back_and_that_of_a_living_one_is_not(start):
    fleet = start(Worker, lease_ttl_s=6.0)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(lease_and_die.remote(fleet))
    call_leased_sync(fleet, "work", 1, 8.0)  # longer than the lease
    after = stats(fleet)
    assert after.expired_leases == 1
    assert after.lost == 0


def test_the_leases_of_a_killed_actor_end_long_before_they_expire(start, caller):
    """One lease in force, and one that it waits for."""
    fleet = start(Worker, lease_ttl_s=1000.0)
    calls = [caller.call.remote(fleet, number, 1000.0) for number in range(2)]
    wait_until(lambda: (stats(fleet).leases, stats(fleet).waiting) == (1, 1))
    ray.kill(caller)
    for call in calls:
        with pytest.raises(ActorDiedError):
            ray.get(call)
    assert call_leased_sync(fleet, "work", 2, 0.0)
    assert stats(fleet).expired_leases == 2


def test_an_actor_that_computes_keeps_its_lease(start, caller):
    fleet = start(Worker, lease_ttl_s=0.4)
    call = caller.call.remote(fleet, 0, 2.0)
    wait_until(lambda: stats(fleet).calls == 1)
    ray.get([caller.block.remote(1.5), call])
    assert stats(fleet).expired_leases == 0


def test_a_lease_is_back_before_its_caller_computes_on(start, caller, tmp_path):
    """As a rollout worker does, whose loop stands still while its network runs: others want the reward actor then."""
    fleet = start(Worker)
    computing = caller.call_and_block.remote(fleet, tmp_path / "go")
    wait_until(lambda: (stats(fleet).calls, stats(fleet).leases) == (1, 0))
    assert ray.wait([computing], timeout=0)[0] == [], "it computes until it is told to go on"
    (tmp_path / "go").touch()
    ray.get(computing)


def test_a_caller_that_gives_up_waiting_gives_its_lease_back(start, caller):
    fleet = start(Worker, lease_ttl_s=1000.0)
    lease = ray.get(fleet.lease.remote())
    ray.get(caller.give_up_waiting.remote(fleet))
    ray.get(fleet.release.remote(lease.lease_id))
    assert call_leased_sync(fleet, "work", 1, 0.0)
    assert stats(fleet).expired_leases == 0


def test_cancelled_calls_leave_no_lease_behind_whenever_they_are_cancelled(start, caller):
    """Ray Data cancels its tasks when a learner dies, and Ray all calls that these made: while they wait for a lease,
    while the fleet grants it, while it travels."""
    fleet = start(Worker, lease_ttl_s=1000.0)
    calls = [caller.call.remote(fleet, number, 0.002) for number in range(300)]
    for call in random.Random(0).sample(calls, 250):
        ray.cancel(call)
        time.sleep(0.002)
    ray.wait(calls, num_returns=len(calls), timeout=PATIENCE_S)
    wait_until(lambda: (stats(fleet).leases, stats(fleet).waiting) == (0, 0))
    assert stats(fleet).expired_leases == 0


def test_shutdown_refuses_those_who_wait(start):
    fleet = start(Worker)
    lease = ray.get(fleet.lease.remote())
    waiting = fleet.lease.remote()
    ray.get(fleet.shutdown.remote())
    with pytest.raises(FleetError, match="fleet crew was shut down"):
        ray.get(waiting)
    with pytest.raises(ActorDiedError):
        ray.get(lease.worker.ready.remote())


class Mute:
    pass


@pytest.mark.parametrize(
    ("actor_class", "settings", "message"),
    [
        (Worker, {"min_workers": 3, "max_workers": 2}, "min_workers=3, max_workers=2"),
        (Worker, {"min_workers": 0}, "1 <= min_workers"),
        (Worker, {"calls_per_worker": 0}, "at least 1, not 0"),
        (Mute, {}, r"Mute has no method ready\(\)"),
    ],
)
def test_impossible_settings_are_refused(actor_class, settings, message):
    with pytest.raises(ValueError, match=message):
        start_fleet("crew", actor_class, **settings)


def test_light_processes_need_no_torch():
    modules = (
        "actors.leasing, actors.fleet, actors.weights, actors.cluster, actors.capacity, actors.journal, pipeline.images"
    )
    code = f"import sys; import {modules}; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    repository = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_worker_that_hangs_is_killed_and_replaced_and_counted(start, tmp_path):
    fleet = start(HangingWorker, tmp_path, 1, call_timeout_s=10.0)
    pid = call_leased_sync(fleet, "work")
    found = stats(fleet)
    assert (found.hung, found.lost, found.restarts) == (1, 1, 1)
    assert found.last_error == "crew-0 did not answer work within 10 s"
    hung, other = map(int, (tmp_path / "pids").read_text().splitlines())
    assert other == pid and psutil.pid_exists(pid)
    wait_until(lambda: not psutil.pid_exists(hung))


def test_a_worker_that_hangs_while_it_loads_says_where_and_is_replaced(start, ray_session, tmp_path):
    fleet = start(HangingLoader, tmp_path, call_timeout_s=LOADING_S)
    assert ray.get(fleet.wait_ready.remote(timeout_s=PATIENCE_S)) == 1
    assert stats(fleet).failed_starts == 1
    assert "it took longer than timeout_seconds of its pool to load" in stats(fleet).last_error
    logs = [path.read_text() for path in Path(ray_session.log_directory).glob("worker-*.err")]
    assert sum("Timeout (0:00:03)!" in log and "in fullmatch" in log for log in logs) == 1


def test_a_worker_whose_gpu_is_broken_is_replaced(start, tmp_path):
    fleet = start(BrokenGpuWorker, tmp_path)
    assert call_leased_sync(fleet, "work") > 0
    assert (stats(fleet).lost, stats(fleet).restarts) == (1, 1)
    assert "an illegal memory access" in stats(fleet).last_error


def test_a_gpu_without_memory_is_no_reason_to_try_another(start, tmp_path):
    fleet = start(BrokenGpuWorker, tmp_path)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        call_leased_sync(fleet, "run_out_of_memory")
    assert stats(fleet).lost == 0


def test_a_call_that_is_always_too_long_is_given_up(start, tmp_path):
    fleet = start(HangingWorker, tmp_path, 9, call_timeout_s=0.3)
    with pytest.raises(FleetError, match=r"did not answer work within 0.3 s, as two workers before it; raise timeout"):
        call_leased_sync(fleet, "work")
    assert stats(fleet).hung == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_nonsense_is_asked_for_once_more(start, tmp_path, workers):
    """Of another worker, where there is one; the only one is asked again."""
    fleet = start(GarblingWorker, tmp_path, min_workers=workers, max_workers=workers)
    assert ray.get(fleet.wait_ready.remote()) == workers
    (tmp_path / "0").touch()
    assert asyncio.run(call_leased(fleet, "work", nonsense=GarbledResultError)) > 0
    assert (stats(fleet).garbled, stats(fleet).lost) == (1, workers - 1)


def test_nonsense_again_is_raised(start, tmp_path):
    fleet = start(GarblingWorker, tmp_path)
    for name in ("0", "1"):
        (tmp_path / name).touch()
    with pytest.raises(GarbledResultError, match="not a number"):
        asyncio.run(call_leased(fleet, "work", nonsense=GarbledResultError))
    assert (stats(fleet).garbled, stats(fleet).lost) == (1, 0)
    (tmp_path / "0").touch()
    with pytest.raises(GarbledResultError):
        call_leased_sync(fleet, "work")


def test_a_crew_whose_fleet_has_died_is_dismissed_all_the_same(ray_session):
    # Every worker process imports this module, and needs none of what a crew is made of.
    from actors.crew import Crew
    from pipeline.logs import log_lines

    store, journal = (ray.remote(Worker).remote() for _ in range(2))
    fleets = [start_fleet(name, Worker) for name in ("reward", "rollout")]
    crew = Crew(store, journal, *fleets, log_lines(print, "driver", "here"))
    ray.kill(crew.rollout_fleet)
    crew.dismiss()
    for actor in (store, journal, *fleets):
        with pytest.raises(ActorDiedError):
            ray.get(actor.stats.remote() if actor in fleets else actor.ready.remote())
