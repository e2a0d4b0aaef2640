"""Trains on three nodes, one of which is killed in an iteration; a process has one login to Ray, so it is its own.

python node_loss_run.py MODEL DIRECTORY
"""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import ray
import torch
from eventually import wait_until
from in_process import align_in_process
from ray.cluster_utils import Cluster
from settings import miniature_settings
from whole_records import keys_expected, keys_found

from actors.crew import start_crew
from actors.fleet_state import FleetStats
from actors.inputs import read_inputs
from actors.training import train
from actors.weights import checksum_of
from pipeline.config import RunSettings

# The head has room for the learner and the reward actor, a spot node for one rollout worker.
HEAD_CPUS, SPOT_CPUS = 2, 4


def settings_on(model: Path) -> RunSettings:
    return miniature_settings(
        model,
        iterations=3,
        rollout={"trajectories": 16, "batch_size": 2, "min_workers": 2, "max_workers": 2, "num_cpus": SPOT_CPUS},
        records={"save": True},
    )


def kill_a_node(cluster: Cluster, spot: Any, fleet: Any, metrics: Path, killed: list[str]) -> None:
    """Its raylet, and with it every worker on it, while the second iteration is rolled out."""
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1)
    wait_until(lambda: stats_of(fleet).busy == 2, interval_s=0.01)
    cluster.remove_node(spot, allow_graceful=False)
    killed.append(spot.node_id)


def stats_of(fleet: Any) -> FleetStats:
    stats: FleetStats = ray.get(fleet.stats.remote())
    return stats


def nodes_alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def main(model: Path, directory: Path) -> None:
    settings = settings_on(model)
    torch.set_num_threads(1)
    expected = [checksum_of(adapter) for adapter in align_in_process(settings)[1:]]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": HEAD_CPUS, "include_dashboard": False})
    spots = [cluster.add_node(num_cpus=SPOT_CPUS) for _ in range(2)]
    ray.init(cluster.address, logging_level="WARNING", log_to_driver=False)
    crew = start_crew(settings, directory)
    crew.wait_ready()  # on the spot nodes, which have no room for anybody else then
    killed: list[str] = []
    killer = threading.Thread(
        target=kill_a_node, args=(cluster, spots[0], crew.rollout_fleet, directory / "metrics.jsonl", killed)
    )
    killer.start()
    train(settings, read_inputs(settings), crew, directory)
    killer.join()
    wait_until(lambda: nodes_alive() == 2)  # the control store may take longer to see it than the run to go on
    facts = {
        "killed": killed == [node["NodeID"] for node in ray.nodes() if not node["Alive"]],
        "lost": stats_of(crew.rollout_fleet).lost,
        "ready": stats_of(crew.rollout_fleet).ready,
        "expected": expected,
        "found": [
            json.loads(line)["adapter_sha256"] for line in (directory / "metrics.jsonl").read_text().splitlines()
        ],
        "records_are_whole": keys_found(directory) == keys_expected(settings),
    }
    (directory / "facts.json").write_text(json.dumps(facts))
    crew.dismiss()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
