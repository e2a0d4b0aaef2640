"""Does the learner go on with fewer workers when a node is lost, and grow back when there is room again?

    python -m benchmarks.chaos.elastic_learner [section.key=value ...]

A small run whose learner spans two nodes of a cluster on this machine and may shrink to one
(`learner.min_workers=1`). One of the nodes is killed, and after two more iterations another one joins. Writes
results/elastic_learner.json: the workers and seconds of every iteration, whether each is there exactly once, and how
far the adapter is from that of a run with two workers throughout.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.chaos.cluster import LocalCluster
from benchmarks.chaos.disturbance import SMALL_RUN, wait_for_iterations
from benchmarks.chaos.run import AlignJob
from pipeline.environment import describe_environment
from pipeline.run_folder import write_json

# Two learner workers do not fit on one node, nor one of them on the head.
NODES, CPUS_PER_NODE, HEAD_CPUS = 2, 6, 3
ELASTIC = ["learner.num_cpus=4", "learner.num_workers=2", "learner.min_workers=1"]
PATIENCE_S = 300.0


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--iterations", type=int, default=60, help="enough to see the learner grow back")
    parser.add_argument("--output", type=Path, default=Path("results/elastic_learner.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    overrides = [*SMALL_RUN, *ELASTIC, *options.overrides, f"iterations={options.iterations}"]
    cluster = LocalCluster(NODES, CPUS_PER_NODE, HEAD_CPUS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            calm = AlignJob(options.config, overrides, Path(folder) / "calm", cluster.address)
            calm.finish()
            troubled = AlignJob(options.config, overrides, Path(folder) / "troubled", cluster.address)
            try:
                shrink_and_grow(troubled, cluster)
                troubled.finish()
            finally:
                troubled.stop()
            result = compare(calm, troubled)
    finally:
        cluster.shutdown()
    write_json(options.output, {**result, "overrides": overrides, "environment": describe_environment()})
    print({key: value for key, value in result.items() if key != "iterations"})


def shrink_and_grow(job: AlignJob, cluster: LocalCluster) -> None:
    """Take one of two nodes away, and add one when the run has gone on without it."""
    wait_for_iterations(job, 2)
    cluster.kill_node(cluster.nodes_without("Journal")[0])
    wait_for_workers(job, 1, since=2)
    wait_for_iterations(job, len(job.metrics()) + 2)
    added = len(job.metrics())
    cluster.add_node()
    wait_for_workers(job, NODES, since=added)


def wait_for_workers(job: AlignJob, count: int, since: int) -> None:
    """Wait for an iteration that so many learner workers have made.

    Raises:
        RuntimeError: there was none in time, or before the run was over.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not any(metrics["learner_workers"] == count for metrics in job.metrics()[since:]):
        if not job.is_running():
            job.finish()
        if time.monotonic() > deadline or not job.is_running():
            raise RuntimeError(f"no iteration of {count} learner workers; they were: {workers_of(job)}")
        time.sleep(0.1)


def workers_of(job: AlignJob) -> list[int]:
    """The number of learner workers by iteration."""
    return [metrics["learner_workers"] for metrics in job.metrics()]


def compare(calm: AlignJob, troubled: AlignJob) -> dict[str, Any]:
    """What became of the run."""
    found, expected = troubled.metrics(), calm.metrics()
    times = [metrics["time"] for metrics in found]
    file = Path("adapter") / "pytorch_lora_weights.safetensors"
    adapters = [load_file(job.run_directory / file) for job in (calm, troubled)]
    furthest = max(float((adapters[0][name] - adapters[1][name]).abs().max()) for name in adapters[0])
    size = max(float(tensor.abs().max()) for tensor in adapters[0].values())
    return {
        "every_iteration_once": [metrics["iteration"] for metrics in found] == list(range(len(expected))),
        "workers_one_after_another": [workers for workers, _ in itertools.groupby(workers_of(troubled))],
        "largest_difference_of_a_weight": furthest,
        "largest_weight": size,
        "iterations": [
            {"workers": workers, "seconds": late - early}
            for workers, (early, late) in zip(workers_of(troubled)[1:], itertools.pairwise(times), strict=True)
        ],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
