"""How many runs a cluster has room for at once."""

from collections.abc import Sequence

import ray

from actors.capacity import (
    Resources,
    WorkerRequest,
    check_capacity,
    driver_object_store,
    find_growth,
    fits,
    with_object_store,
)
from actors.cluster import SPARE_CPUS
from actors.crew import most_worker_requests, worker_requests
from pipeline.arithmetic import run_arithmetic
from pipeline.config import RunSettings

# Beside its actors a run may have tasks that read a data set.
SPARE = WorkerRequest("Ray Data", SPARE_CPUS, {"CPU": 1.0})


def runs_with_room(runs: Sequence[RunSettings], at_most: int) -> int:
    """How many of `runs` the connected cluster holds at once, all their pools at the maximum; at least 1.

    An autoscaling cluster is taken for as large as it may grow, where that is known. The driver's object store, which
    holds the records of all of them, does not grow.
    """
    requests = _largest([[*most_worker_requests(settings), SPARE] for settings in runs])
    nodes = _nodes(sum(request.num_workers for request in requests) * at_most)
    most_records = driver_object_store() // max(map(_record_bytes, runs))
    together = 1
    while together < min(at_most, most_records) and fits(_copies(requests, together + 1), nodes):
        together += 1
    return together


def check_room_at_once(runs: Sequence[RunSettings]) -> None:
    """Refuse runs that the connected cluster can never hold together: each would keep what another needs.

    Raises:
        ValueError: with what to change.
    """
    try:
        check_capacity(requests_together(runs))
    except ValueError as error:
        raise ValueError(f"{len(runs)} runs at once find no room: lower the comparison's parallel. {error}") from error
    needed, store = sum(map(_record_bytes, runs)), driver_object_store()
    if needed > store:
        raise ValueError(
            f"{len(runs)} runs at once keep {needed} bytes in Ray's object store, and the driver's holds {store}: "
            f"lower the comparison's parallel, or {with_object_store(needed)}"
        )


def requests_together(runs: Sequence[RunSettings]) -> list[WorkerRequest]:
    """The least that must fit on the cluster while `runs` go on together; equal workers of a role are counted."""
    together: dict[tuple[str, tuple[tuple[str, float], ...]], WorkerRequest] = {}
    for request in (request for settings in runs for request in worker_requests(settings)):
        key = request.role, tuple(sorted(request.resources.items()))
        found = together.get(key, request._replace(num_workers=0))
        together[key] = found._replace(num_workers=found.num_workers + request.num_workers)
    return list(together.values())


def _record_bytes(settings: RunSettings) -> int:
    return run_arithmetic(settings).object_store_bytes_at_once


def _largest(requests_of_runs: Sequence[Sequence[WorkerRequest]]) -> list[WorkerRequest]:
    """A run that asks for the most of every role that any of them asks for; all name the same roles in order."""
    return [
        WorkerRequest(
            same_role[0].role,
            max(request.num_workers for request in same_role),
            {name: max(request.resources.get(name, 0.0) for request in same_role) for name in same_role[0].resources},
        )
        for same_role in zip(*requests_of_runs, strict=True)
    ]


def _copies(requests: Sequence[WorkerRequest], number: int) -> list[WorkerRequest]:
    return [request._replace(num_workers=number * request.num_workers) for request in requests]


def _nodes(max_nodes_per_type: int) -> list[Resources]:
    growth = find_growth(max_nodes_per_type)
    if growth.autoscales and growth.largest is not None:
        return growth.largest
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
