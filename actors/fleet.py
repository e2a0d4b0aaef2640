"""Fleet: an elastic set of worker actors, leased call by call.

The minimum of workers is asked for at once, the rest by `grow`, when every role of the run has its place: on a cluster
of fixed size they would else take the learner's. Actors that wait for room are what makes an autoscaler add nodes.
Those for which there is nothing to do for long are given back, and asked for again when calls wait. Work starts with
the first worker that is ready, late ones join, lost ones are replaced, and no number is waited for.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.background import BackgroundTasks
from actors.cluster import beside_the_driver
from actors.draining import draining_nodes, node_of
from actors.fleet_state import FleetError, FleetStats, Lease
from actors.lease_table import LeaseTable, Worker
from actors.liveness import DEATHS, dead_actors
from actors.logs import log_in_actor
from actors.metrics import METRICS_INTERVAL_S, FleetMetrics
from actors.start_failures import StartFailures
from actors.worker_pool import WorkerPool, say

# Each waiting lease is a call in progress; with fewer slots than waiting callers a release could not get through.
MAX_PENDING_CALLS = 100_000

# A spot notice comes two minutes before the end, or less.
DRAIN_POLL_S = 2.0

# An actor that dies while it holds a lease keeps others waiting for so long.
HOLDER_POLL_S = 2.0

# A successor of the learner that has found no place by then needs that of a worker which serves nobody without it.
SUCCESSOR_PATIENCE_S = 180.0

TOO_LATE = (
    "\nIf it had a place all the while, it took longer than timeout_seconds of its pool to load and ended itself; "
    "Ray's log of it says where it was, and a download asks for a higher timeout_seconds"
)


class Fleet:
    """Starts, leases, watches and replaces the workers of one kind. Run it by `start_fleet`.

    A worker is an instance of any class with a method `ready()` (plain or async): it returns once the worker can serve,
    and is called again every `health_interval_s` seconds, so that an idle worker's death is noticed as well.
    """

    def __init__(
        self,
        name: str,
        actor_class: type,
        actor_args: Sequence[Any],
        actor_options: dict[str, Any],
        min_workers: int,
        max_workers: int,
        calls_per_worker: int,
        lease_ttl_s: float,
        call_timeout_s: float,
        idle_timeout_s: float,
        health_interval_s: float,
        max_start_failures: int,
        run: str,
        journal: Any,
    ) -> None:
        self.name = name
        log_in_actor("fleet", name, journal and journal.log.remote)
        self._lease_ttl_s = lease_ttl_s
        self._call_timeout_s = call_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._health_interval_s = health_interval_s

        self._background = BackgroundTasks(on_error=lambda error: self._fail(f"broke: {error!r}"))
        self._leases = LeaseTable(calls_per_worker, lease_ttl_s, call_timeout_s)
        self._pool = WorkerPool(
            name,
            actor_class,
            actor_args,
            actor_options,
            min_workers,
            max_workers,
            self._leases,
            on_start=lambda worker: self._background.run(self._watch(worker)),
        )
        self._changed = asyncio.Condition()
        self._failure: str | None = None
        self._grown_for = ""
        self._grower_seen_at = math.inf

        self._start_failures = StartFailures(max_start_failures, max_workers)
        self._lost = self._failed_starts = self._expired_leases = 0
        self._hung = self._garbled = self._drained = self._given_back = 0
        self._last_error = ""
        self._metrics = FleetMetrics(run, name)

    async def start(self) -> None:
        """Ask for the minimum of workers; called once, by `start_fleet`."""
        self._pool.ask_for(self._pool.min_workers)
        self._background.run(self._expire_leases())
        self._background.run(self._watch_callers())
        self._background.run(self._show_metrics())
        self._background.run(self._leave_draining_nodes())
        self._background.run(self._give_back_idle_workers())

    async def grow(self, on_behalf_of: str = "") -> None:
        """Ask for all workers up to the maximum, those that are there counted; of no effect on a fleet that has ended.

        Args:
            on_behalf_of: the id of the actor that has found its place. When it dies, those that have found none since
                are withdrawn, so that its successor finds one, until the fleet is to grow again; where that takes long,
                all above the minimum that serve nobody are.
        """
        if self._failure is None:
            self._grown_for, self._grower_seen_at = on_behalf_of, time.monotonic()
            self._pool.has_grown = True
            self._pool.ask_for(self._pool.max_workers)

    # Leases

    async def lease(self, holder: str = "", lease_id: str = "") -> Lease:
        """Wait for the least busy ready worker with a free slot; whoever came first is served first.

        Args:
            holder: the id of the actor that asks, whose lease ends with it, if Ray never restarts that actor. Any other
                caller has to renew its own.
            lease_id: unique, by which its caller can give it back without having learnt that it was granted.

        Raises:
            FleetError: the workers cannot start, or the fleet was shut down.
        """
        self._raise_if_failed()
        waiter = self._leases.ask(holder, lease_id)
        self._grant()
        if self._pool.has_grown:  # those that were given back when there was nothing to do
            self._pool.ask_for_more(self._leases.waiting - self._pool.pending)
        return await waiter

    async def renew(self, lease_id: str) -> None:
        """Say that the holder of the lease lives; of no effect on a lease that ended."""
        self._leases.renew(lease_id)

    async def release(self, lease_id: str) -> None:
        """Give the slot back; of no effect on a lease that ended, for the worker may have died meanwhile."""
        self._leases.end(lease_id)
        self._grant()

    async def report_dead(self, worker_id: str, error: str = "") -> None:
        """Replace a worker whose call was lost; reports on a worker that was replaced already change nothing."""
        worker = self._pool.get(worker_id)
        if worker is not None:
            self._lose(worker, error or f"{worker_id} was reported dead")

    async def report_hung(self, worker_id: str, error: str) -> None:
        """Kill and replace a worker that did not answer in time; of no effect on one that was replaced already."""
        worker = self._pool.get(worker_id)
        if worker is not None:
            self._hung += 1
            self._lose(worker, error)

    async def report_garbled(self, worker_id: str, error: str) -> None:
        """Replace a worker that returned nonsense, if another can serve meanwhile.

        What the last of them returns may be the fault of what they all were made of, or were asked.
        """
        worker = self._pool.get(worker_id)
        self._garbled += 1
        if worker is not None and self._pool.serving > 1:
            self._lose(worker, error)

    # State

    async def wait_ready(self, count: int | None = None, timeout_s: float | None = None) -> int:
        """Wait until `count` workers (default: the fleet's minimum) are ready, and return how many are.

        Raises:
            FleetError: not within `timeout_s` seconds, or the workers cannot start.
        """
        wanted = self._pool.min_workers if count is None else count
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._failure is not None or self._pool.serving >= wanted)
        except TimeoutError:
            raise FleetError(
                f"fleet {self.name}: {self._pool.serving} of {wanted} workers ready after {timeout_s:g} s, "
                f"{len(self._pool) - self._pool.serving} pending (each asks for {self._pool.actor_options}); "
                f"newest error: {self._last_error or 'none'}"
            ) from None
        self._raise_if_failed()
        return self._pool.serving

    async def stats(self) -> FleetStats:
        """The fleet's counters at this moment."""
        return FleetStats(
            name=self.name,
            ready=self._pool.serving,
            pending=self._pool.pending,
            busy=sum(worker.ready and bool(worker.lease_expiry) for worker in self._pool),
            leases=len(self._leases),
            waiting=self._leases.waiting,
            calls=self._leases.granted,
            restarts=self._pool.restarts,
            lost=self._lost,
            hung=self._hung,
            garbled=self._garbled,
            drained=self._drained,
            given_back=self._given_back,
            failed_starts=self._failed_starts,
            expired_leases=self._expired_leases,
            last_error=self._last_error,
        )

    async def shutdown(self) -> None:
        """Stop all workers; every waiting and later lease raises FleetError."""
        for worker in self._pool:
            self._pool.remove(worker)
        await self._fail("was shut down")

    # Workers

    async def _watch(self, worker: Worker) -> None:
        """Take the worker in once it is ready, then ask it again and again until it is lost."""
        try:
            await worker.actor.ready.remote()
            worker.node_id = await node_of(worker.actor)
        except RayError as error:
            if worker.worker_id in self._pool:
                await self._start_failed(worker, error)
            return
        if worker.worker_id not in self._pool:
            return
        worker.ready_at = worker.idle_since = time.monotonic()
        say(logging.INFO, worker, f"ready, as Ray's actor {worker.actor._actor_id.hex()}")
        self._start_failures.forget()
        self._grant()
        await self._notify()
        while worker.worker_id in self._pool:
            await asyncio.sleep(self._health_interval_s)
            try:
                await worker.actor.ready.remote()
            except RayError as error:
                await self.report_dead(worker.worker_id, str(error))

    async def _start_failed(self, worker: Worker, error: RayError) -> None:
        """Start another worker, unless starting fails again and again."""
        self._pool.remove(worker)
        self._failed_starts += 1
        constructor_raised = isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False)
        crashed = isinstance(error, DEATHS) and not constructor_raised
        is_late = crashed and time.monotonic() - worker.idle_since > self._call_timeout_s
        self._last_error = f"{error}{TOO_LATE * is_late}"
        say(logging.WARNING, worker, f"did not start: {self._last_error}")
        others_started_at = [other.idle_since for other in self._pool if not other.ready]
        pause_s = self._start_failures.count(crashed, self._pool.serving > 0, others_started_at)
        if pause_s is None:
            attempts = self._start_failures.in_a_row
            reason = f"failed to start a worker {attempts} times in a row; the last error was:\n{self._last_error}"
            await self._fail(reason)
            return
        await asyncio.sleep(pause_s)
        self._replace()

    def _lose(self, worker: Worker, error: str) -> None:
        say(logging.WARNING, worker, f"lost: {error}")
        self._lost += 1
        self._last_error = error
        self._pool.remove(worker)
        if not worker.leaving:
            self._replace()

    async def _leave_draining_nodes(self) -> None:
        """Replace workers whose nodes will be taken back while they still serve, and end them when they are through."""
        while self._failure is None:
            await asyncio.sleep(DRAIN_POLL_S)
            draining = await asyncio.to_thread(draining_nodes)
            for worker in [w for w in self._pool if w.ready and not w.leaving and w.node_id in draining]:
                say(logging.WARNING, worker, "its node will be taken back")
                worker.leaving = True
                self._drained += 1
                self._replace()
            for worker in [w for w in self._pool if w.leaving and not w.lease_expiry]:
                self._pool.remove(worker)

    async def _give_back_idle_workers(self) -> None:
        """End workers above the minimum that had no work for long, so that an autoscaler can end their nodes."""
        while self._failure is None and self._idle_timeout_s < math.inf:
            await asyncio.sleep(self._idle_timeout_s / 4)
            idle_before = time.monotonic() - self._idle_timeout_s
            if self._leases.waiting or self._leases.last_wait > idle_before:
                continue
            idle = [w for w in self._pool.idle if w.idle_since < idle_before]
            self._given_back += self._pool.end_surplus(idle, "given back: there has been no work for it")

    def _replace(self) -> None:
        """Start a worker in the place of another: none above the minimum while a successor looks for its place."""
        if self._failure is None:
            self._pool.replace()

    async def _fail(self, reason: str) -> None:
        """Refuse every waiting and later lease; the first reason stays."""
        self._failure = self._failure or f"fleet {self.name} {reason}"
        self._leases.refuse(FleetError(self._failure))
        await self._notify()

    # Bookkeeping

    def _grant(self) -> None:
        self._leases.grant(self._pool)

    async def _expire_leases(self) -> None:
        """Take back the leases of tasks and drivers that died: those that were not renewed in time."""
        while self._failure is None:
            await asyncio.sleep(self._lease_ttl_s / 4)
            self._take_back(self._leases.expired(), "a lease was not renewed: its caller is gone")

    async def _watch_callers(self) -> None:
        """Take back the leases of actors that died, and what came after the one that the fleet has grown for."""
        while self._failure is None:
            await asyncio.sleep(HOLDER_POLL_S)
            asked_at, grower = time.monotonic(), self._grown_for
            dead = await dead_actors(self._leases.holders() | ({grower} if grower else set()))
            self._take_back(self._leases.held_by(dead), "the caller that held a lease died")
            if grower and grower not in dead:
                self._grower_seen_at = asked_at
            elif grower and grower == self._grown_for:
                self._withdraw()
            if not self._pool.has_grown and self._grower_seen_at < asked_at - SUCCESSOR_PATIENCE_S:
                self._pool.end_surplus(self._pool.idle, "withdrawn: a successor has found no place for long")

    def _withdraw(self) -> None:
        """End workers above the minimum that were not there when the actor that the fleet grew for was last seen."""
        self._pool.has_grown, self._grown_for = False, ""
        staying = [worker for worker in self._pool if not worker.leaving]
        late = [w for w in staying if w.ready_at is None or w.ready_at > self._grower_seen_at]
        self._pool.end_surplus(late, "withdrawn: whom the fleet grew for has died, and a successor goes first")

    def _take_back(self, lease_ids: Sequence[str], reason: str) -> None:
        for lease_id in lease_ids:
            say(logging.WARNING, self._leases.worker_of(lease_id), reason)
            self._leases.end(lease_id)
        self._expired_leases += len(lease_ids)
        self._grant()

    async def _show_metrics(self) -> None:
        while self._failure is None:
            self._metrics.show(asdict(await self.stats()))
            await asyncio.sleep(METRICS_INTERVAL_S)

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise FleetError(self._failure)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def start_fleet(
    name: str,
    actor_class: type,
    *,
    actor_args: Sequence[Any] = (),
    actor_options: dict[str, Any] | None = None,
    min_workers: int = 1,
    max_workers: int = 1,
    calls_per_worker: int = 1,
    lease_ttl_s: float = 30.0,
    call_timeout_s: float = math.inf,
    idle_timeout_s: float = math.inf,
    health_interval_s: float = 10.0,
    max_start_failures: int = 3,
    run: str = "",
    journal: Any = None,
) -> "ActorHandle[Any]":
    """Start a Fleet beside the driver and ask for its minimum of workers; return without waiting for any of them.

    Args:
        name: for error messages and worker ids.
        actor_class: plain class of the workers, with a method `ready()`.
        actor_args: arguments of its constructor.
        actor_options: Ray options of each worker: num_cpus, num_gpus, max_concurrency, runtime_env, ...
        min_workers: what `wait_ready` waits for by default.
        max_workers: workers asked for once `grow` is called.
        calls_per_worker: leases in force at once on one worker. More than one overlaps calls where the class is
            asynchronous, or has a max_concurrency above it.
        lease_ttl_s: a lease that a task or a driver does not renew for so long is taken back, seconds.
        call_timeout_s: a worker that takes longer over one call is taken for hung, seconds.
        idle_timeout_s: a worker above the minimum that had no work for so long is given back, until work waits again,
            seconds.
        health_interval_s: time between two calls of `ready()` on a ready worker, seconds.
        max_start_failures: constructors that raise in a row before the fleet gives up; it takes `max_workers` times as
            many processes killed while starting.
        run: whose fleet it is, for those who watch several runs.
        journal: keeps what the fleet says in the run folder.

    Raises:
        ValueError: the counts contradict each other, or the class has no `ready`.
    """
    if not 1 <= min_workers <= max_workers:
        raise ValueError(
            f"fleet {name}: need 1 <= min_workers <= max_workers, "
            f"not min_workers={min_workers}, max_workers={max_workers}"
        )
    if calls_per_worker < 1:
        raise ValueError(f"fleet {name}: calls_per_worker must be at least 1, not {calls_per_worker}")
    if not callable(getattr(actor_class, "ready", None)):
        raise ValueError(f"fleet {name}: {actor_class.__name__} has no method ready()")
    fleet_class: Any = ray.remote(Fleet)
    fleet: Any = fleet_class.options(**beside_the_driver(), max_concurrency=MAX_PENDING_CALLS).remote(
        name=name,
        actor_class=actor_class,
        actor_args=tuple(actor_args),
        actor_options=dict(actor_options or {}),
        min_workers=min_workers,
        max_workers=max_workers,
        calls_per_worker=calls_per_worker,
        lease_ttl_s=lease_ttl_s,
        call_timeout_s=call_timeout_s,
        idle_timeout_s=idle_timeout_s,
        health_interval_s=health_interval_s,
        max_start_failures=max_start_failures,
        run=run,
        journal=journal,
    )
    ray.get(fleet.start.remote())
    return fleet
