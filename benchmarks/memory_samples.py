"""How much memory processes and the object store hold."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
from ray._private.internal_api import get_memory_info_reply

MIB = 2**20
ROLES = {
    "ray::RolloutWorker": "rollout worker",
    "ray::RewardActor": "reward actor",
    "ray::RayTrainWorker": "learner",
    "ray::WeightStore": "weight store",
    "ray::Journal": "journal",
    "ray::Fleet": "fleet",
    "ray::TrainController": "train controller",
}
"""What the titles of a run's processes begin with."""

FLAT_SHARE, FLAT_MIB = 0.02, 4.0
"""A process counts as flat if 100 more iterations add less than this share of it, or less than so many MiB."""


def resident_sizes(roles: Mapping[str, str] = ROLES) -> dict[str, float]:
    """MiB of every process that this one started and whose command holds a key of `roles`, by role and process id.

    The first key that a command holds tells its role.
    """
    sizes = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title, resident = " ".join(process.cmdline()), process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended since it was listed
            continue
        role = next((role for part, role in roles.items() if part in title), None)
        if role is not None:
            sizes[f"{role} {process.pid}"] = resident / MIB
    return sizes


def object_store_size(state: Any) -> float:
    """MiB in the object stores of all nodes together."""
    return get_memory_info_reply(state).store_stats.object_store_bytes_used / MIB


def is_flat(growth_per_iteration: float, size: float) -> bool:
    """Whether a process of `size` MiB that grows by so many MiB an iteration counts as flat."""
    return 100 * growth_per_iteration < max(FLAT_SHARE * size, FLAT_MIB)


def slope(points: list[tuple[int, float]]) -> float:
    """Growth per iteration by least squares over (iteration, MiB)."""
    iterations, sizes = np.array(points, dtype=float).T
    return float(np.polyfit(iterations, sizes, 1)[0])
