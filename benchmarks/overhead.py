"""How much slower is an iteration of the real job than its bare network calls?

    python -m benchmarks.overhead --config configs/demo.yaml [--rounds 3] [--iterations 4] [section.key=value ...]

Runs the job's own actors for a few iterations, then times the same network calls at the same batch sizes back to back
in one process with all cores, and so on by turns, for the speed of a shared machine changes within minutes. Writes the
seconds and the ratio of every round, the median ratio and the share of each phase to results/overhead.json.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from actors.cluster import connect, disconnect
from actors.crew import cpus_of_all_workers, start_crew
from actors.inputs import read_inputs
from actors.training import train
from benchmarks.floor import BareCalls
from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.environment import describe_environment
from pipeline.run_folder import MetricsFile, write_json


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of the job and of its bare calls")
    parser.add_argument("--iterations", type=int, default=4, help="iterations of a round; its first is left out")
    parser.add_argument("--output", type=Path, default=Path("results/overhead.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    # Sample grids would be drawn between the iterations that are timed.
    fixed = [f"iterations={options.iterations}", "samples.every=1000000", "evaluation.images=0"]
    settings = load_settings(options.config, [*options.overrides, *fixed])

    threads = os.cpu_count() or 1
    bare_calls = BareCalls(settings, threads)
    rounds = [measure_round(settings, bare_calls) for _ in range(options.rounds)]
    result = {
        "config": str(options.config),
        "overrides": options.overrides,
        "iterations_timed": options.rounds * (options.iterations - 1),
        "floor_threads": threads,
        "rounds": rounds,
        "ratio": median(one["ratio"] for one in rounds),
        "environment": describe_environment(),
    }
    write_json(options.output, result)
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=2))


def measure_round(settings: RunSettings, bare_calls: BareCalls) -> dict[str, Any]:
    """Seconds of an iteration, of its two parts and of its bare calls, and the ratio and shares that follow."""
    iterations = measure_job(settings)
    floor = bare_calls.phases()
    floor_seconds = sum(floor.values())
    iteration_seconds = median(metrics["seconds"] for metrics in iterations)
    return {
        "iteration_seconds": iteration_seconds,
        "rollout_seconds": median(metrics["rollout_seconds"] for metrics in iterations),
        "learn_seconds": median(metrics["learn_seconds"] for metrics in iterations),
        "floor_seconds": floor_seconds,
        "ratio": iteration_seconds / floor_seconds,
        "floor_share_by_phase": {name: seconds / floor_seconds for name, seconds in floor.items()},
    }


def measure_job(settings: RunSettings) -> list[dict[str, float]]:
    """Metrics of every iteration after the first, which still starts processes and fills caches."""
    cluster = connect(cpus_of_all_workers(settings))
    try:
        with tempfile.TemporaryDirectory() as folder:
            crew = start_crew(settings, Path(folder))
            crew.wait_ready()
            train(settings, read_inputs(settings), crew, Path(folder))
            metrics = MetricsFile(Path(folder) / "metrics.jsonl").read()
            crew.dismiss()
            return metrics[1:]
    finally:
        disconnect(cluster)


if __name__ == "__main__":
    main()
