"""Does a long run under random kills hold its memory and lose nothing?

    python -m benchmarks.chaos.soak [--iterations 300] [--calm 20] [--seed 0] [section.key=value ...]

One small run on a cluster of this machine, in which a victim is killed every `--calm` iterations or thereabouts, in the
seeded order of `benchmarks.chaos`. After every iteration the resident size of every process and the object stores are
looked at. The same run then goes through undisturbed. Writes results/soak.json: whether every iteration is there once,
with the records and the adapter of the undisturbed run, the kills, for every role the median size in each tenth of the
run, and whether its longest-lived process has stopped growing.
"""

import argparse
import contextlib
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from ray._private.internal_api import get_state_from_address

from benchmarks.chaos.cluster import LocalCluster
from benchmarks.chaos.disturbance import (
    CPUS_PER_NODE,
    NODES,
    SMALL_RUN,
    kill,
    schedule,
    wait_for_iterations,
)
from benchmarks.chaos.run import AlignJob
from benchmarks.chaos.sameness import as_sentences, compare
from benchmarks.memory_samples import ROLES, is_flat, object_store_size, resident_sizes, slope
from pipeline.environment import describe_environment
from pipeline.run_folder import write_json

ALL_ROLES = ROLES | {
    "jobs/align.py": "driver",
    "raylet/raylet": "raylet",
    "gcs/gcs_server": "control store",
    "ray::DashboardAgent": "dashboard agent",
    "ray::RuntimeEnvAgent": "runtime environment agent",
    "dashboard/dashboard.py": "dashboard",
    "log_monitor.py": "log monitor",
    "monitor.py": "autoscaler's monitor",
    "ray::": "worker of Ray Data and of Ray's own actors",
}
OBJECT_STORE = "object store"
PARTS = 10

Samples = dict[str, list[tuple[int, float]]]
"""(iteration, MiB) of every process, by role and process id, and of the object store."""


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--calm", type=int, default=20, help="iterations between two kills, on average")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--output", type=Path, default=Path("results/soak.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    overrides = [*SMALL_RUN, *options.overrides, f"iterations={options.iterations}"]
    cluster = LocalCluster(NODES, CPUS_PER_NODE)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            job = AlignJob(options.config, overrides, Path(folder) / "soak", cluster.address)
            stack.callback(job.stop)
            samples, kills = soak(job, cluster, options.iterations, options.calm, options.seed)
            job.finish()
            undisturbed = AlignJob(options.config, overrides, Path(folder) / "undisturbed", cluster.address)
            stack.callback(undisturbed.stop)
            undisturbed.finish()
            sameness = compare(undisturbed, job)
    finally:
        cluster.shutdown()
    result = {
        "iterations": options.iterations,
        **sameness,
        "kills": kills,
        "mebibytes": summarise(samples, options.iterations),
    }
    write_json(options.output, {**result, "overrides": overrides, "environment": describe_environment()})
    print(f"{len(kills)} kills. {as_sentences(sameness)}")
    for role, sizes in result["mebibytes"].items():
        print(f"{role}: {sizes}")


def soak(
    job: AlignJob, cluster: LocalCluster, iterations: int, calm: int, seed: int
) -> tuple[Samples, list[dict[str, Any]]]:
    """Look at all sizes after every iteration, and kill now and then."""
    rng, state = random.Random(seed), get_state_from_address(cluster.address)
    moments = sorted(rng.sample(range(1, iterations - 1), iterations // calm))
    victims = dict(zip(moments, schedule(len(moments), seed), strict=True))
    samples: Samples = defaultdict(list)
    for done in range(1, iterations):
        wait_for_iterations(job, done)
        for process, size in resident_sizes(ALL_ROLES).items():
            samples[process].append((done, size))
        with contextlib.suppress(grpc.RpcError):  # the node that was asked has just been killed
            samples[OBJECT_STORE].append((done, object_store_size(state)))
        if done in victims:
            kill(job, cluster, victims[done], rng)
    return samples, [{"iteration": moment, "victim": victim} for moment, victim in victims.items()]


def summarise(samples: Samples, iterations: int) -> dict[str, dict[str, Any]]:
    """By role: the median size of its processes in each part of the run, and the growth of the longest-lived one."""
    by_role: dict[str, list[list[tuple[int, float]]]] = defaultdict(list)
    for process, points in samples.items():
        by_role[process if process == OBJECT_STORE else process.rpartition(" ")[0]].append(points)
    return {role: summarise_role(series, iterations) for role, series in sorted(by_role.items())}


def summarise_role(series: list[list[tuple[int, float]]], iterations: int) -> dict[str, Any]:
    """Medians over the parts of the run in which the role had a process, and what its longest-lived one has gained.

    The first third of that one's life is left out: its caches fill.
    """
    parts: dict[int, list[float]] = defaultdict(list)
    for points in series:
        for iteration, size in points:
            parts[iteration * PARTS // iterations].append(size)
    longest = max(series, key=len)
    settled = longest[len(longest) // 3 :]
    growth = slope(settled) if len(settled) > 1 else 0.0
    return {
        "processes": len(series),
        "median_by_part": [round(median(parts[part]), 1) for part in sorted(parts)],
        "longest_lived": {
            "iterations": len(longest),
            "settled": round(settled[0][1], 1),
            "end": round(settled[-1][1], 1),
            "growth_per_100_iterations": 100 * growth,
            "flat": is_flat(growth, settled[0][1]),
        },
    }


if __name__ == "__main__":
    main()
