"""What descriptions of clusters have in common: the command they document, and the nodes that Ray starts for it."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

from pipeline.config import RunSettings
from pipeline.config_loading import load_settings

ROOT = Path(__file__).resolve().parents[1]
AWS, GCP = "cluster.yaml", "deploy/cluster-gcp.yaml"
RAYJOB = "deploy/kuberay/rayjob.yaml"
DESCRIPTIONS = (AWS, GCP, RAYJOB)

Config = dict[str, Any]


def read_cluster(name: str) -> Config:
    """A description for `ray up`, in which no two node types share an object, so that a test can change one."""
    return json.loads(json.dumps(yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))))


def read_rayjob() -> tuple[Config, Config]:
    """The RayJob and the NetworkPolicy of the description for Kubernetes."""
    job, policy = yaml.safe_load_all((ROOT / RAYJOB).read_text(encoding="utf-8"))
    return json.loads(json.dumps(job)), policy


def as_cluster(rayjob: Config) -> Config:
    """What the autoscaler makes of a RayJob, by its own code: the same keys as a description for `ray up` has."""
    cluster = {"metadata": {"name": "tailorpo", "namespace": "default"}, "spec": rayjob["spec"]["rayClusterSpec"]}
    return _derive_autoscaling_config_from_ray_cr(cluster)


def read_any(name: str) -> Config:
    """One of DESCRIPTIONS, as the autoscaler has it."""
    return as_cluster(read_rayjob()[0]) if name == RAYJOB else read_cluster(name)


def pinned_ray() -> str:
    """The version of Ray in constraints.txt."""
    (version,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return version


def documented_command(name: str) -> str:
    """The job that a description or its head comment submits; of README, the one for an autoscaling cluster."""
    if name == RAYJOB:
        return str(read_rayjob()[0]["spec"]["entrypoint"])
    text = re.sub(r"\\\n#?", "", (ROOT / name).read_text(encoding="utf-8"))
    command = re.search(r"python jobs/align\.py.*output_dir=/mnt/runs.*", text)
    assert command is not None, f"{name} submits no job"
    return command[0]


def settings_of_command(command: str) -> RunSettings:
    """The settings of a run that `python jobs/align.py --config FILE key=value ...`, somewhere in a text, starts."""
    config_file = re.search(r"--config (\S+)", command)
    assert config_file is not None
    return load_settings(ROOT / config_file[1], re.findall(r"\b[a-z_]+(?:\.[a-z_]+)*=[\w./-]+", command))


def demands_of(settings: RunSettings) -> dict[str, list[dict[str, float]]]:
    """What the workers of each role ask for, all of them that the run will ever want."""
    roles = {
        "rollout": (settings.rollout, settings.rollout.max_workers),
        "reward": (settings.reward_actors, settings.reward_actors.max_workers),
        "learner": (settings.learner, settings.learner.num_workers),
    }
    return {name: [{"CPU": role.num_cpus, "GPU": role.num_gpus}] * count for name, (role, count) in roles.items()}


def nodes_started_for(config: Config, demands: list[dict[str, float]]) -> dict[str, int]:
    """Node types and counts that Ray's scheduler launches for `demands` when only the head runs."""
    head = config["head_node_type"]
    types = {name: {"max_workers": 0} | node for name, node in config["available_node_types"].items()}
    scorer = partial(_default_utilization_scorer, node_availability_summary=None)
    started, unmet = get_nodes_for(types, {head: 1}, head, config["max_workers"], demands, scorer)
    assert unmet == []
    return dict(started)


def nodes_at_maximum(config: Config) -> list[dict[str, float]]:
    """The resources of all nodes that may exist at once, the head included."""
    types, head = config["available_node_types"], config["head_node_type"]
    return [
        node["resources"] for name, node in types.items() for _ in range(1 if name == head else node["max_workers"])
    ]
