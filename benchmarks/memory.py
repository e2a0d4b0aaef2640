"""Does memory grow? Resident size of every actor and the object store, over the iterations of a real run.

    python -m benchmarks.memory --config configs/demo.yaml [--iterations 50] [section.key=value ...]

Writes results/memory.json: for every process of the run its size after the first tenth of the iterations (when caches
are full) and at the end, in MiB, and the growth per iteration by least squares over what lies between.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from actors.cluster import connect, disconnect
from actors.crew import cpus_of_all_workers, start_crew
from actors.training import train
from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.environment import describe_environment
from pipeline.progress import ProgressReporter
from pipeline.run_folder import write_json

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

Series = dict[str, list[tuple[int, float]]]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("results/memory.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    fixed = [f"iterations={options.iterations}", "samples.every=1000000", "evaluation.images=0"]
    settings = load_settings(options.config, [*options.overrides, *fixed])
    series = measure(settings)
    result = {
        "config": str(options.config),
        "overrides": options.overrides,
        "iterations": options.iterations,
        "mebibytes": {
            name: summarise(points, options.iterations)
            for name, points in sorted(series.items())
            if lived_on(points, options.iterations)
        },
        "environment": describe_environment(),
    }
    write_json(options.output, result)
    print(json.dumps(result["mebibytes"], indent=2))


def measure(settings: RunSettings) -> Series:
    """MiB by process after every iteration that the driver sees end."""
    series: Series = defaultdict(list)
    cluster = connect(cpus_of_all_workers(settings))
    state = get_state_from_address(cluster.address)
    try:
        with tempfile.TemporaryDirectory() as folder:
            crew = start_crew(settings, Path(folder))
            crew.wait_ready()

            def metrics_since(first: int) -> list[dict[str, float]]:
                metrics = ray.get(crew.journal.since.remote(first))
                if metrics:
                    store = get_memory_info_reply(state).store_stats.object_store_bytes_used
                    series["object store"].append((metrics[-1]["iteration"], store / MIB))
                    for name, size in resident_sizes().items():
                        series[name].append((metrics[-1]["iteration"], size))
                return metrics

            with ProgressReporter(settings.iterations).following(metrics_since):
                train(settings, crew, Path(folder))
            crew.dismiss()
            time.sleep(1)
    finally:
        disconnect(cluster)
    return series


def resident_sizes() -> dict[str, float]:
    """MiB of every process of the run on this machine, by role and process id."""
    sizes = {}
    for process in psutil.process_iter(["pid", "cmdline", "memory_info"]):
        title = " ".join(process.info["cmdline"] or [])
        for prefix, role in ROLES.items():
            if title.startswith(prefix):
                sizes[f"{role} {process.info['pid']}"] = process.info["memory_info"].rss / MIB
    return sizes


def lived_on(points: list[tuple[int, float]], iterations: int) -> bool:
    """Whether a process was there after the first tenth and near the end; Ray also starts some that end at once."""
    return points[-1][0] >= iterations * 9 // 10 and len(points) > 2


def summarise(points: list[tuple[int, float]], iterations: int) -> dict[str, float]:
    """Size after the first tenth, at the end, and the slope between."""
    settled = np.array([point for point in points if point[0] >= iterations // 10])
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) if len(settled) > 1 else float("nan")
    return {"settled": float(settled[0, 1]), "end": float(settled[-1, 1]), "growth_per_iteration": slope}


if __name__ == "__main__":
    main()
