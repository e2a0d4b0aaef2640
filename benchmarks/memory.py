"""Does memory grow? Resident size of every actor and the object store, over the iterations of a real run.

    python -m benchmarks.memory --config configs/demo.yaml [--iterations 50] [--settle 30] [section.key=value ...]

Writes results/memory.json: for every process of the run its size in MiB when its caches are full, after `--settle`
iterations, and `--iterations` later, the growth per iteration by least squares over what lies between, whether that
counts as flat, and the whole series. Each rollout worker keeps the embeddings of the prompts it has met: half of the
demo's prompts in each pass.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import ray
from ray._private.internal_api import get_state_from_address

from actors.cluster import connect, disconnect
from actors.crew import cpus_of_all_workers, start_crew
from actors.inputs import read_inputs
from actors.training import train
from benchmarks.memory_samples import is_flat, object_store_size, resident_sizes, slope
from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.environment import describe_environment
from pipeline.progress import ProgressReporter
from pipeline.run_folder import write_json

Series = dict[str, list[tuple[int, float]]]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--iterations", type=int, default=50, help="iterations that are watched")
    parser.add_argument("--settle", type=int, default=30, help="iterations before them, in which caches fill")
    parser.add_argument("--output", type=Path, default=Path("results/memory.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    total = options.settle + options.iterations
    fixed = [f"iterations={total}", "samples.every=1000000", "evaluation.images=0"]
    settings = load_settings(options.config, [*options.overrides, *fixed])
    series = measure(settings)
    result = {
        "config": str(options.config),
        "overrides": options.overrides,
        "settle": options.settle,
        "iterations": options.iterations,
        "mebibytes": {
            name: summarise(points, options.settle)
            for name, points in sorted(series.items())
            if points[-1][0] >= total - 2
        },
        "environment": describe_environment(),
    }
    write_json(options.output, result)
    told = {name: {key: sizes[key] for key in sizes if key != "series"} for name, sizes in result["mebibytes"].items()}
    print(json.dumps(told, indent=2))


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
                    series["object store"].append((metrics[-1]["iteration"], object_store_size(state)))
                    for name, size in resident_sizes().items():
                        series[name].append((metrics[-1]["iteration"], size))
                return metrics

            with ProgressReporter(settings.iterations).following(metrics_since):
                train(settings, read_inputs(settings), crew, Path(folder))
            crew.dismiss()
            time.sleep(1)
    finally:
        disconnect(cluster)
    return series


def summarise(points: list[tuple[int, float]], settle: int) -> dict[str, object]:
    """Size after `settle` iterations and at the end, the slope between, a verdict, and all (iteration, MiB)."""
    settled = [point for point in points if point[0] >= settle]
    growth = slope(settled)
    return {
        "settled": settled[0][1],
        "end": settled[-1][1],
        "growth_per_iteration": growth,
        "flat": is_flat(growth, settled[0][1]),
        "series": [(iteration, round(size, 2)) for iteration, size in points],
    }


if __name__ == "__main__":
    main()
