"""Refusing, before any actor starts, a run whose minimum of workers the cluster can never hold.

The question is asked in two steps. First: do the workers fit on the nodes that are there (their total resources,
whoever uses them now)? Only if not: can the cluster grow, and into what? Ray has no public call for that, so
`find_growth` reads what its parts leave behind, checked with Ray 2.60 on fixed and autoscaling clusters:

1. The cluster configuration in the control store (node groups with their resources and maxima), which Ray Data and
   Ray Train consult. Managed services write it; the open-source autoscaler does not.
2. The autoscaler's monitor process. Every head node runs one; only on an autoscaling cluster its command line has
   `--autoscaling-config=FILE`, with all node types. It can be seen where the driver runs on the head node, as the
   drivers of `ray job submit` do.
3. The status that the monitor publishes every few seconds, which tells whether the cluster grows, but not into what.
   Autoscaler v1 (key `__autoscaling_status`) counts nodes by the configured names of their types; on a fixed cluster
   each node is a type of its own, `node_<id>`. Under autoscaler v2 each node carries the instance id that the cloud
   gave it; on a fixed cluster there is none.

Where the cluster grows into nobody knows what (3), there is nothing to check against, and the run waits for its nodes.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import yaml
from ray._private.state import state as cluster_state
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

Resources = dict[str, float]

GIB = 2**30

# What a process with torch, diffusers and transformers takes, whatever its networks.
WORKER_BYTES = 300 * 2**20

# The monitor of a cluster that started this moment has not spoken yet.
STATUS_PATIENCE_S = 10.0

# The search proves that a packing exists or that none does. It is given up after this, in favour of the user.
SEARCH_LIMIT_S = 10.0


class WorkerRequest(NamedTuple):
    """`num_workers` workers of a role, each with these logical resources: {"CPU": 1, "GPU": 0.5}."""

    role: str
    num_workers: int
    resources: Resources


@dataclass(frozen=True)
class Growth:
    """Whether a cluster can grow, and into what.

    Attributes:
        autoscales: False for a cluster of fixed size.
        largest: the resources of every node that may exist at once, each node type at its own maximum; None where
            that is not known.
    """

    autoscales: bool
    largest: list[Resources] | None = None


class _Column(NamedTuple):
    """An unknown of the packing: how many workers of a request stand on a node (and on one of its GPUs).

    With `request` None: whether that GPU is cut into fractions.
    """

    request: int | None
    node: int
    gpu: int | None


def check_capacity(requests: Sequence[WorkerRequest]) -> None:
    """Raise if the cluster this process is connected to can never hold all of `requests` at once.

    Call it with the *minimum* workers of every role. On an autoscaling cluster they are held against the nodes that its
    configuration allows, each type at its own maximum (their common maximum is not looked at).

    Raises:
        ValueError: naming what is asked for, what is there, and what to change.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if fits(requests, nodes):
        return
    growth = find_growth(max_nodes_per_type=sum(request.num_workers for request in requests))
    if not growth.autoscales:
        raise ValueError(_refusal(requests, nodes, "this cluster of fixed size has"))
    if growth.largest is not None and not fits(requests, growth.largest):
        raise ValueError(_refusal(requests, growth.largest, "this autoscaling cluster can grow to at most"))


def check_memory(requests: Sequence[WorkerRequest]) -> None:
    """Raise if a cluster of fixed size has not the memory that all of `requests` take at the very least.

    Where a job starts Ray itself, every CPU that it asks for is there by name; only this says how many are too many.

    Raises:
        ValueError: naming what is asked for, what is there, and what to change.
    """
    workers = sum(request.num_workers for request in requests)
    needed = workers * WORKER_BYTES
    there = sum(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"])
    if needed > there and not find_growth(max_nodes_per_type=workers).autoscales:
        asked = " and ".join(f"{count} of {role}" for role, count, _ in requests if count > 0)
        raise ValueError(
            f"the minimum of workers does not fit: {asked} take {needed / GIB:.0f} GiB of memory at the least, and the "
            f"machines of this cluster of fixed size have {there / GIB:.0f} for them; lower the pools' min_workers, or "
            "add nodes"
        )


def places_on_nodes(resources: Resources) -> int:
    """How many workers that reserve `resources` the living nodes could hold if they were empty."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {name: amount for name, amount in resources.items() if amount > 0}
    return sum(min(int(node.get(name, 0) // amount) for name, amount in asked.items()) for node in nodes)


def check_object_store(bytes_at_once: int, trajectories: int) -> None:
    """Refuse an iteration of so many trajectories that fills the driver's object store.

    That is where its light tasks leave the records, and no cluster that grows makes it larger. Ray would write what has
    no room to disks, over and over, and fail where they are small.

    Raises:
        ValueError: with the number to set.
    """
    store = driver_object_store()
    if bytes_at_once <= store:
        return
    fitting = max(1, trajectories * store // bytes_at_once)
    raise ValueError(
        f"an iteration keeps {bytes_at_once} bytes in Ray's object store at once, and the driver's holds {store}; "
        f"lower rollout.trajectories from {trajectories} to {fitting}, or {with_object_store(bytes_at_once)}"
    )


def driver_object_store() -> int:
    """Bytes that the object store of the driver's node holds."""
    driver = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == driver)
    return int(resources.get("object_store_memory", 0))


def with_object_store(num_bytes: int) -> str:
    """How to start a Ray whose driver's object store holds so much."""
    return f"start Ray with `ray start --head --object-store-memory={num_bytes}` and join it by RAY_ADDRESS=auto"


def fits(requests: Sequence[WorkerRequest], nodes: Sequence[Resources]) -> bool:
    """Whether all workers can stand on the nodes at once, decided exactly by integer programming.

    A worker stands on one node. A fraction of a GPU lies on one GPU of its node, which then serves no whole-GPU worker.
    Where the search takes too long to prove either answer, the answer is True.
    """
    requests = [request for request in requests if request.num_workers > 0]
    if not requests:
        return True
    columns = _packing_columns(requests, nodes)
    if {request for request, _, _ in columns if request is not None} != set(range(len(requests))):
        return False
    solution = milp(
        np.zeros(len(columns)),
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, [1 if column.request is None else np.inf for column in columns]),
        constraints=_packing_constraints(requests, nodes, columns),
        options={"time_limit": SEARCH_LIMIT_S},
    )
    proven_impossible = 2
    return bool(solution.status != proven_impossible)


def find_growth(max_nodes_per_type: int) -> Growth:
    """How the connected cluster can grow; see the module's text for how it knows.

    Args:
        max_nodes_per_type: how many nodes of a type are worth listing, where the cluster allows more or any number.
    """
    config = cluster_state.get_cluster_config()
    if config is not None and config.node_group_configs:
        groups = [(dict(group.resources), group.max_count) for group in config.node_group_configs]
        return Growth(True, _largest(groups, max_nodes_per_type))
    command = _monitor_command()
    if command is not None:
        files = [part.partition("=")[2] for part in command if part.startswith("--autoscaling-config=")]
        return _growth_of_configuration(Path(files[0]), max_nodes_per_type) if files else Growth(False)
    return Growth(_published_status_shows_autoscaling())


def _packing_columns(requests: Sequence[WorkerRequest], nodes: Sequence[Resources]) -> list[_Column]:
    columns = []
    for node, offered in enumerate(nodes):
        num_gpus = int(offered.get("GPU", 0))
        for request, (_, _, wanted) in enumerate(requests):
            if any(amount > offered.get(name, 0) for name, amount in wanted.items()):
                continue
            slots = range(num_gpus) if _is_fraction(wanted) else [None]
            columns += [_Column(request, node, gpu) for gpu in slots]
        if any(_is_fraction(wanted) for _, _, wanted in requests):
            columns += [_Column(None, node, gpu) for gpu in range(num_gpus)]
    return columns


def _packing_constraints(
    requests: Sequence[WorkerRequest], nodes: Sequence[Resources], columns: Sequence[_Column]
) -> list[LinearConstraint]:
    entries: list[tuple[tuple[Any, ...], int, float]] = []  # (name of the row, column, coefficient)
    for column, (request, node, gpu) in enumerate(columns):
        if request is None:
            entries += [((node, gpu), column, -1.0), ((node, "GPU"), column, 1.0)]
            continue
        entries.append((("count", request), column, 1.0))
        for name, amount in requests[request].resources.items():
            row = (node, gpu) if name == "GPU" and gpu is not None else (node, name)
            entries.append((row, column, amount))
    rows = {row: index for index, row in enumerate(dict.fromkeys(row for row, _, _ in entries))}
    lower, upper = np.full(len(rows), -np.inf), np.zeros(len(rows))
    for (first, second), index in rows.items():
        if first == "count":
            lower[index] = upper[index] = requests[second].num_workers
        elif isinstance(second, str):
            upper[index] = nodes[first].get(second, 0.0)
    coordinates = ([rows[row] for row, _, _ in entries], [column for _, column, _ in entries])
    coefficients = coo_array(([value for _, _, value in entries], coordinates), shape=(len(rows), len(columns)))
    return [LinearConstraint(coefficients.tocsr(), lower, upper)]


def _is_fraction(resources: Resources) -> bool:
    return 0 < resources.get("GPU", 0) < 1


def _largest(groups: Sequence[tuple[Resources, int]], max_nodes_per_type: int) -> list[Resources] | None:
    """All nodes that may exist; None if a type does not say what it has. A maximum of -1 means any number."""
    largest: list[Resources] = []
    for resources, max_count in groups:
        if max_count == 0:
            continue
        if not resources:
            return None
        count = max_nodes_per_type if max_count < 0 else min(max_count, max_nodes_per_type)
        largest += [resources] * count
    return largest


def _growth_of_configuration(path: Path, max_nodes_per_type: int) -> Growth:
    config = yaml.safe_load(path.read_text())
    groups = []
    for name, node_type in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        max_count = 1 if is_head else node_type.get("max_workers", config.get("max_workers", -1))
        groups.append((node_type.get("resources", {}), max_count))
    return Growth(True, _largest(groups, max_nodes_per_type))


def _monitor_command() -> list[str] | None:
    """Command line of this cluster's autoscaling monitor, if it runs on this machine (read from Linux's /proc)."""
    this_cluster = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    if not sys.platform.startswith("linux"):
        return None
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # the process ended, or is not ours to read
            continue
        if this_cluster in command and any(Path(part).name == "monitor.py" for part in command):
            return command
    return None


def _published_status_shows_autoscaling() -> bool:
    deadline = time.monotonic() + STATUS_PATIENCE_S
    while True:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        if any(node.instance_id for node in [*status.active_nodes, *status.idle_nodes]):
            return True
        published = _internal_kv_get("__autoscaling_status")
        report = json.loads(published).get("autoscaler_report") if published else None
        if report is not None:
            return not all(node_type.startswith("node_") for node_type in report["active_nodes"])
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)


def _refusal(requests: Sequence[WorkerRequest], nodes: Sequence[Resources], what_there_is: str) -> str:
    asked = "; ".join(f"{count} x {role} with {_format(wanted)}" for role, count, wanted in requests if count > 0)
    names = sorted({name for _, _, wanted in requests for name in wanted})
    shapes = [_format({name: node.get(name, 0.0) for name in names}) for node in nodes]
    there = "; ".join(f"{shapes.count(shape)} x node with {shape}" for shape in dict.fromkeys(shapes)) or "no node"
    homeless = [
        role
        for role, count, wanted in requests
        if count > 0 and not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes)
    ]
    reason = f"No node is large enough for one {homeless[0]} worker. " if homeless else ""
    return (
        f"the minimum of workers does not fit: the configuration asks for {asked}, but {what_there_is} {there}. "
        f"{reason}Lower the pools' min_workers, num_cpus or num_gpus (a fraction of a GPU lets workers share it), "
        "or add nodes."
    )


def _format(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
