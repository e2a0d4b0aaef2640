"""Joining a Ray cluster, or starting Ray on this machine.

A laptop run is a Ray run: the rest of the program does not know which of the two happened.
"""

import logging
import math
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[1]

QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}

# Data sets are read by tasks of a CPU each, which would wait for ever where actors, of other runs too, have them all.
SPARE_CPUS = 2

# Ray ends idle processes where there are more than CPUs, actors counted. Those of an iteration's light tasks, which
# take seconds to start, would be ended while the learner learns, and started anew for the next iteration.
KEPT_PROCESSES = {"RAY_num_workers_soft_limit": "64"}

# Ray's control store remembers 100,000 finished tasks by default, and grows until it has met so many.
FEW_REMEMBERED_TASKS = {"RAY_task_events_max_num_task_in_gcs": "1000"}

# Ray gives its own processes half a minute to start, little on cores that others use too.
START_ATTEMPTS = 3

# How Ray puts it, in an exception of no class of its own.
STARTED_TOO_SLOWLY = "timed out during startup"

# What a cluster's nodes need not receive; .gitignore and .rayignore are honoured on top.
UPLOAD_EXCLUDES = [".git", ".venv", "runs"]

# The folder of a Ray session that holds what was uploaded for its jobs.
RUNTIME_RESOURCES = "runtime_resources"

# Ray labels every node with its id.
NODE_ID_LABEL = "ray.io/node-id"

# Present in the driver of `ray job submit`, together with RAY_ADDRESS.
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class ClusterInfo:
    """What `connect` did and found, for environment.json (`dataclasses.asdict`).

    Attributes:
        mode: "started" (Ray on this machine), "joined" (a running cluster) or "already connected".
        address: address of the cluster's control store.
        ray_version: version of Ray.
        driver_host: name of the machine that runs the driver.
        nodes: number of living nodes.
        resources: logical resources of all nodes together.
        log_directory: where Ray keeps the logs of the workers, on each node.
    """

    mode: str
    address: str
    ray_version: str
    driver_host: str
    nodes: int
    resources: dict[str, float]
    log_directory: str


def connect(cpus_asked: float = 0.0, *, own_modules: Sequence[Path] = ()) -> ClusterInfo:
    """Join the cluster named by RAY_ADDRESS (`ray job submit` sets it), else start Ray on this machine.

    A process that is connected already stays as it is. On this machine CPUs are only bookkeeping, so Ray is told of at
    least `cpus_asked` and a few more, whatever the hardware: the pools of a configuration always fit.

    Args:
        cpus_asked: logical CPUs that all actors of the run reserve together.
        own_modules: Python files and packages of the user's that the workers import.

    Raises:
        ConnectionError: RAY_ADDRESS names a cluster that does not answer.
        ValueError: RAY_ADDRESS is that of a Ray client, which is no part of the cluster.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise ValueError(
            f"RAY_ADDRESS={address} is a Ray client's; run `ray job submit -- python jobs/align.py ...` instead, "
            "so that the driver lives in the cluster and survives this terminal"
        )
    if ray.is_initialized():
        return _describe("already connected")
    if address:
        ray.init(runtime_env=_cluster_runtime_env(own_modules), **QUIET)
        return _describe("joined")
    # Inherited by the workers; a runtime environment would cost each of them another process, and Ray its spare ones.
    ray_variables = KEPT_PROCESSES | FEW_REMEMBERED_TASKS
    os.environ.update(ray_variables | _worker_environment() | {"PYTHONPATH": _python_path()})
    start_ray(num_cpus=max(os.cpu_count() or 1, math.ceil(cpus_asked) + SPARE_CPUS))
    return _describe("started")


def start_ray(**options: Any) -> None:
    """Start Ray on this machine with `options` of `ray.init`, and again where it was too slow for itself.

    What an attempt in vain has started ends with this process.

    Raises:
        Exception: what Ray raises otherwise, or for the third time.
    """
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init(address="local", include_dashboard=False, **QUIET, **options)
            return
        except Exception as error:
            if attempts_left == 0 or STARTED_TOO_SLOWLY not in str(error):
                raise
            logger.warning("Ray did not start in the time that it gives itself; it is started again: %s", error)


def refuse_fleeting_folder(folder: Path) -> None:
    """Refuse a folder in the copy of the working directory that Ray makes for a submitted job, and deletes after it.

    Raises:
        ValueError: results would be lost with the copy. Or the folder is a URI, which this folder's job does not take.
    """
    if ":/" in str(folder):
        raise ValueError(f"{folder} is no path; only jobs/align.py writes to object storage, its output_dir=s3://...")
    if RUNTIME_RESOURCES in folder.resolve().parts:
        raise ValueError(
            f"{folder} would lie in the job's copy of the working directory, which Ray deletes; give an absolute path "
            "that outlives the job and that all nodes share, such as output_dir=/shared/runs"
        )


def refuse_relative_folder(info: ClusterInfo, folder: Path) -> None:
    """Refuse a relative path of what processes on a joined cluster write into: they work in a copy of this folder.

    Raises:
        ValueError: with the path to give.
    """
    if info.mode == "joined" and not folder.is_absolute():
        raise ValueError(
            f"processes of the cluster at {info.address} work in copies of this folder, where {folder} is another one; "
            f"give absolute paths, such as output_dir={folder.resolve().parent}"
        )


def disconnect(info: ClusterInfo) -> None:
    """Leave the cluster, and stop it if `connect` started it; a connection made by somebody else is left alone."""
    if info.mode != "already connected":
        ray.shutdown()


def beside_the_driver() -> dict[str, Any]:
    """Options of the few actors that steer the run: no CPU, on the driver's node, which the run cannot lose anyway.

    The affinity is a hard one because Ray takes any node for what asks for no resources and has a soft one.
    """
    node_id = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def node_of_the_driver() -> dict[str, str]:
    """The label selector of what takes no place on the driver's node, for those who take no scheduling strategy."""
    return {NODE_ID_LABEL: ray.get_runtime_context().get_node_id()}


def _worker_environment() -> dict[str, str]:
    # Without it an actor that reserved no GPU sees all GPUs of its node and would use one that another actor reserved.
    hide_unreserved_gpus = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
    # A variable that is set here may come from the job's own runtime environment, and Ray refuses to set it twice.
    return {} if hide_unreserved_gpus in os.environ else {hide_unreserved_gpus: "1"}


def _cluster_runtime_env(own_modules: Sequence[Path]) -> dict[str, Any]:
    """Send the repository to the nodes, except in a submitted job, whose --working-dir (or image) has it already.

    The user's own modules go along, unless they lie at the top of the repository or are installed.

    Ray refuses a job whose driver sets a field that the submission set too.
    """
    environment: dict[str, Any] = {"env_vars": _worker_environment()}
    if JOB_CONFIG_VARIABLE not in os.environ:
        environment |= {"working_dir": str(REPOSITORY), "excludes": UPLOAD_EXCLUDES}
        sent = [str(path) for path in own_modules if path.parent != REPOSITORY and not path.is_relative_to(sys.prefix)]
        if sent:  # Ray takes an empty list for one module without a name, and starts no worker
            environment["py_modules"] = sent
    return environment


def _python_path() -> str:
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(REPOSITORY), *filter(None, [inherited])])


def _describe(mode: str) -> ClusterInfo:
    context = ray.get_runtime_context()
    node: Any = ray._private.worker.global_worker.node
    alive = [other for other in ray.nodes() if other["Alive"]]
    return ClusterInfo(
        mode=mode,
        address=context.gcs_address,
        ray_version=ray.__version__,
        driver_host=socket.gethostname(),
        nodes=len(alive),
        resources=ray.cluster_resources(),
        log_directory=str(Path(node.get_session_dir_path()) / "logs"),
    )
