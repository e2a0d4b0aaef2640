"""Who may call which worker: the leases in force, and the callers that wait for one."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

from actors.fleet_state import Lease


@dataclass
class Worker:
    """A worker actor as its fleet sees it; times are those of time.monotonic()."""

    worker_id: str
    actor: Any
    node_id: str = ""
    ready_at: float | None = None
    leaving: bool = False
    """Its node will be taken back: it serves the leases that it has and is given no more."""
    lease_expiry: dict[str, float] = field(default_factory=dict)
    """When each of its leases ends unless it is renewed, by lease id."""
    idle_since: float = field(default_factory=time.monotonic)
    """When it was started, became ready, or its last lease ended."""

    @property
    def ready(self) -> bool:
        """Whether it has come up."""
        return self.ready_at is not None

    @property
    def serving(self) -> bool:
        """Whether it can be leased."""
        return self.ready and not self.leaving


class _Request(NamedTuple):
    lease: "asyncio.Future[Lease]"
    holder: str
    lease_id: str


class LeaseTable:
    """Hands free slots to those who wait, whoever came first being served first."""

    def __init__(self, calls_per_worker: int, lease_ttl_s: float, call_timeout_s: float) -> None:
        self._calls_per_worker = calls_per_worker
        self._lease_ttl_s = lease_ttl_s
        self._call_timeout_s = call_timeout_s
        self._waiting: deque[_Request] = deque()
        self._worker_of_lease: dict[str, Worker] = {}
        self._holder_of_lease: dict[str, str] = {}
        self.granted = 0
        """Leases granted since the beginning."""
        self.last_wait = -math.inf
        """When somebody last found no free slot, by time.monotonic()."""

    def __len__(self) -> int:
        """Leases in force."""
        return len(self._worker_of_lease)

    @property
    def waiting(self) -> int:
        """Callers that wait."""
        return sum(not request.lease.done() for request in self._waiting)

    def ask(self, holder: str, lease_id: str) -> "asyncio.Future[Lease]":
        """Queue up for a lease."""
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(waiter, holder, lease_id or uuid4().hex))
        return waiter

    def grant(self, workers: Iterable[Worker]) -> None:
        """Give the free slots of `workers` to those who wait, on the least busy one each."""
        serving = [worker for worker in workers if worker.serving]
        while self._waiting:
            free = [worker for worker in serving if len(worker.lease_expiry) < self._calls_per_worker]
            if not free:
                self.last_wait = time.monotonic()
                return
            request = self._waiting.popleft()
            if request.lease.done():  # its caller was cancelled
                continue
            worker = min(free, key=lambda w: len(w.lease_expiry))
            # Whether an actor lives is known, and one that computes renews nothing.
            renew_within_s = math.inf if request.holder else self._lease_ttl_s
            worker.lease_expiry[request.lease_id] = time.monotonic() + renew_within_s
            self._worker_of_lease[request.lease_id] = worker
            self._holder_of_lease[request.lease_id] = request.holder
            self.granted += 1
            request.lease.set_result(
                Lease(request.lease_id, worker.worker_id, worker.actor, renew_within_s, self._call_timeout_s)
            )

    def refuse(self, error: Exception) -> None:
        """Raise `error` in all who wait."""
        while self._waiting:
            lease = self._waiting.popleft().lease
            if not lease.done():
                lease.set_exception(error)

    def renew(self, lease_id: str) -> None:
        """Say that the holder of a lease lives; of no effect on one that ended."""
        worker = self._worker_of_lease.get(lease_id)
        if worker is not None:
            worker.lease_expiry[lease_id] = max(worker.lease_expiry[lease_id], time.monotonic() + self._lease_ttl_s)

    def end(self, lease_id: str) -> None:
        """Take a slot back; of no effect on a lease that ended."""
        worker = self._worker_of_lease.pop(lease_id, None)
        if worker is not None:
            del worker.lease_expiry[lease_id]
            del self._holder_of_lease[lease_id]
            worker.idle_since = time.monotonic()

    def worker_of(self, lease_id: str) -> Worker:
        """Whom a lease in force is on."""
        return self._worker_of_lease[lease_id]

    def expired(self) -> list[str]:
        """Leases that were not renewed in time."""
        now = time.monotonic()
        return [lease for lease, worker in self._worker_of_lease.items() if worker.lease_expiry[lease] < now]

    def holders(self) -> set[str]:
        """The actors that hold leases."""
        return {holder for holder in self._holder_of_lease.values() if holder}

    def held_by(self, holders: Collection[str]) -> list[str]:
        """The leases of some actors."""
        return [lease_id for lease_id, holder in self._holder_of_lease.items() if holder in holders]
