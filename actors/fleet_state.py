"""What a fleet tells: leases, counters, and that it cannot serve."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from ray.actor import ActorHandle


class FleetError(RuntimeError):
    """The fleet cannot serve: its workers fail to start, or it was shut down."""


class Lease(NamedTuple):
    """The right to one call at a time on one worker, for as long as it is renewed every `renew_within_s` seconds.

    That is infinite for actors, whose leases end with them.
    A call that takes longer than `call_timeout_s` is to be reported by `report_hung`.
    """

    lease_id: str
    worker_id: str
    worker: "ActorHandle[Any]"
    renew_within_s: float
    call_timeout_s: float


@dataclass(frozen=True)
class FleetStats:
    """Counters of a fleet; `calls` and those after it count since its start.

    Attributes:
        name: name of the fleet.
        ready: workers that can be leased.
        pending: workers that are starting or wait for room in the cluster.
        busy: ready workers with at least one lease.
        leases: leases in force.
        waiting: callers that wait for a lease.
        calls: leases granted.
        restarts: workers started in place of another.
        lost: workers that died, or were given up, after they were ready.
        hung: those of them that did not answer in time.
        garbled: calls whose result nobody could use.
        drained: workers replaced because their node was about to be taken back.
        given_back: workers ended because there was no work for them.
        failed_starts: workers that died before they were ready.
        expired_leases: leases taken back because their holders died, or did not renew them.
        last_error: text of the newest loss or failed start, empty without one.
    """

    name: str
    ready: int
    pending: int
    busy: int
    leases: int
    waiting: int
    calls: int
    restarts: int
    lost: int
    hung: int
    garbled: int
    drained: int
    given_back: int
    failed_starts: int
    expired_leases: int
    last_error: str
