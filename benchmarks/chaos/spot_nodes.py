"""Does a run on spot machines, which an autoscaler adds and clouds take back, end with the same adapter?

    python -m benchmarks.chaos.spot_nodes [--iterations 40] [section.key=value ...]

Starts Ray's own autoscaler on this machine, with a head that has no room for rollout workers. A small run of up to two
of them, each as large as a node, begins when there is none. Then a node is taken back half a minute after its notice,
another one without any, then all at once. When the run is over, all nodes are to be given back. The same run then goes
through undisturbed. Writes results/spot_nodes.json: what was taken back and what the run's log says of it, the seconds
and losses of every iteration, and whether iterations, records and adapter are those of the undisturbed run.
"""

import argparse
import itertools
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray._private.internal_api import get_state_from_address
from ray.core.generated import autoscaler_pb2

from benchmarks.chaos.autoscaling_head import autoscaling_head, kill_raylets
from benchmarks.chaos.cluster import SHORT_HEALTH_CHECKS
from benchmarks.chaos.disturbance import SMALL_RUN, wait_for_iterations
from benchmarks.chaos.run import AlignJob
from benchmarks.chaos.sameness import as_sentences, compare
from pipeline.environment import describe_environment
from pipeline.run_folder import write_json

# A node more than workers: one whose node will be taken back is replaced before.
MOST_WORKERS, CPUS_PER_NODE, HEAD_CPUS = 2, 3, 2
NODE = {"CPU": CPUS_PER_NODE}
ON_SPOT_NODES = [
    f"rollout.num_cpus={CPUS_PER_NODE}",
    "rollout.min_workers=1",
    f"rollout.max_workers={MOST_WORKERS}",
    "reward_actors.num_cpus=1",
    "reward_actors.min_workers=1",
    "reward_actors.max_workers=1",
    "learner.num_cpus=1",
]
NOTICE_S, PATIENCE_S = 30.0, 300.0
IDLE_MINUTES = 0.1
CALM_ITERATIONS = 4
OF_EACH_ITERATION = ("iteration", "seconds", "lost/rollout", "hung/rollout")


class SpotNodes:
    """The nodes of a cluster beside its head, and how a cloud takes them back."""

    def __init__(self, address: str) -> None:
        """Look at a cluster."""
        self._state = get_state_from_address(address)
        self._control_store = ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]

    def alive(self) -> list[str]:
        """Ids of the nodes that are there, the head left out."""
        nodes = [node for node in self._state.node_table() if node["Alive"]]
        return sorted(node["NodeID"] for node in nodes if node["Resources"].get("CPU") == CPUS_PER_NODE)

    def wait_for(self, count: int) -> list[str]:
        """Wait until there are so many, and return them.

        Raises:
            RuntimeError: they do not come, or go, in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while len(nodes := self.alive()) != count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(nodes)} nodes instead of {count} after {PATIENCE_S:g} s")
            time.sleep(0.2)
        return nodes

    def take_one_after_a_notice(self) -> None:
        """Tell the cluster of a node that will be taken back, and take it back when it was told."""
        reasons: Any = autoscaler_pb2
        node, reason = self.alive()[0], reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + NOTICE_S) * 1000)
        accepted, refusal = self._control_store.drain_node(node, reason, "spot notice", deadline_ms)
        if not accepted:
            raise RuntimeError(f"the cluster does not drain a node: {refusal}")
        time.sleep(NOTICE_S)
        self._take([node])

    def take_one(self) -> None:
        """Take a node back without a word."""
        self._take(self.alive()[:1])

    def take_all(self) -> None:
        """Take all nodes back at once."""
        self._take(self.alive())

    def _take(self, nodes: list[str]) -> None:
        """Kill nodes, and wait until the cluster knows."""
        kill_raylets(nodes)
        while not set(nodes).isdisjoint(self.alive()):
            time.sleep(0.2)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--iterations", type=int, default=40, help="enough for all nodes to come back thrice")
    parser.add_argument("--output", type=Path, default=Path("results/spot_nodes.json"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    overrides = [*SMALL_RUN, *ON_SPOT_NODES, *options.overrides, f"iterations={options.iterations}"]
    # This process, the run's and the cluster's must agree on how they log in.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    head = autoscaling_head("v2", NODE, MOST_WORKERS + 1, IDLE_MINUTES, head_cpus=HEAD_CPUS, **SHORT_HEALTH_CHECKS)
    with head as address, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        nodes = SpotNodes(address)
        before = len(nodes.alive())
        job = AlignJob(options.config, overrides, Path(folder) / "taken_back", address)
        stack.callback(job.stop)
        taken = disturb(job, nodes)
        ended = time.monotonic()
        after, seconds = len(nodes.wait_for(0)), time.monotonic() - ended
        undisturbed = AlignJob(options.config, overrides, Path(folder) / "undisturbed", address)
        stack.callback(undisturbed.stop)
        undisturbed.finish()
        sameness = compare(undisturbed, job)
        iterations = [{key: line[key] for key in OF_EACH_ITERATION} for line in job.metrics()]
    result = {
        **sameness,
        "nodes_before": before,
        "taken_back": taken,
        "nodes_after": after,
        "seconds_until_given_back": seconds,
        "iterations": iterations,
    }
    write_json(options.output, {**result, "overrides": overrides, "environment": describe_environment()})
    for taking in taken:
        print(taking)
    print(f"{after} nodes are left. {as_sentences(sameness)}")


def disturb(job: AlignJob, nodes: SpotNodes) -> list[dict[str, Any]]:
    """Take nodes back, some iterations after all of them were there, and follow the run to its end."""
    taken: list[dict[str, Any]] = []
    times: list[float] = []
    for what, take in (
        ("one, after a notice", nodes.take_one_after_a_notice),
        ("one, without a word", nodes.take_one),
        ("all, without a word", nodes.take_all),
    ):
        nodes.wait_for(MOST_WORKERS)
        wait_for_iterations(job, len(job.metrics()) + CALM_ITERATIONS)
        iteration = len(job.metrics())
        times.append(time.time())
        take()
        nodes.wait_for(MOST_WORKERS)
        taken.append({"what": what, "iteration": iteration, "seconds_until_all_were_back": time.time() - times[-1]})
    job.finish()
    for taking, (begin, end) in zip(taken, itertools.pairwise([*times, time.time()]), strict=True):
        taking["told"] = [f"after {seconds:.1f} s: {text}" for seconds, text in job.lines(begin, end)]
    return taken


if __name__ == "__main__":
    main()
