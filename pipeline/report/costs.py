"""What a policy has cost so far: the horizontal axes of the report."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.report.history import RunHistory, Series


@dataclass(frozen=True)
class Cost:
    """One way to count what was spent.

    Attributes:
        name: column of the Parquet file.
        label: what it is called.
        before: of a run, what was spent on the policy that drew the images of each iteration, (N,) float64. That is
            the policy which begins it, or with rollout.max_staleness an older one. The first point costs nothing: it
            is the base model.
    """

    name: str
    label: str
    before: Callable[[RunHistory], Series]


def trajectories_before(run: RunHistory) -> Series:
    """Trajectories trained on before the policy of each iteration's rollouts, (N,) float64."""
    return _versions(run).astype(np.float64) * run.settings.rollout.trajectories


def trajectories_learnt(run: RunHistory) -> Series:
    """Trajectories trained on before each iteration's own, (N,) float64: where what the learner tells belongs."""
    return np.arange(len(run.metrics), dtype=np.float64) * run.settings.rollout.trajectories


def network_calls_before(run: RunHistory) -> Series:
    """Forward calls of the network before the policy of each iteration's rollouts, (N,) float64.

    Those of rollouts, reference and learner together.
    """
    return trajectories_before(run) * run.settings.network_calls_per_trajectory


def seconds_before(run: RunHistory) -> Series:
    """Seconds of rollouts and learning before the policy of each iteration's rollouts, (N,) float64.

    Pauses of an interrupted run, checkpoints, sample grids and the evaluation are left out.
    """
    return np.concatenate([[0.0], np.cumsum(run.series("seconds"))])[_versions(run)]


def _versions(run: RunHistory) -> NDArray[np.int64]:
    """The version of the policy that drew each iteration's images, (N,): how many iterations had trained it.

    Runs that were made before policies could be older have no age.
    """
    ages = np.nan_to_num(run.series("policy_age")).astype(np.int64)
    return np.arange(len(run.metrics)) - ages


TRAJECTORIES = Cost("trajectories", "trajectories", trajectories_before)
NETWORK_CALLS = Cost("network_calls", "network calls", network_calls_before)
SECONDS = Cost("seconds", "time", seconds_before)
COSTS = (TRAJECTORIES, NETWORK_CALLS, SECONDS)
