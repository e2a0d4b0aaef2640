"""Clusters for `ray up`: Ray's own validation, what Ray lets through, and which nodes the documented commands start."""

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
from cluster_files import (
    AWS,
    DESCRIPTIONS,
    GCP,
    ROOT,
    Config,
    demands_of,
    documented_command,
    nodes_at_maximum,
    nodes_started_for,
    pinned_ray,
    read_any,
    read_cluster,
    settings_of_command,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from actors.capacity import WorkerRequest, fits
from actors.crew import most_worker_requests
from pipeline.config_loading import load_settings

# Tasks that read data sets run beside the workers.
CPUS_OF_THE_PLAN = WorkerRequest("plan", 2, {"CPU": 1})

BASE = "configs/base/sd15.yaml"
WHOLE_RUNS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if not path.stem.startswith("compare_")]
RECIPES = [path for path in WHOLE_RUNS if path.stem.startswith("sd15_")]


@pytest.fixture(params=[AWS, GCP])
def config(request: pytest.FixtureRequest) -> Config:
    return read_cluster(request.param)


def resource_faults(config: Config) -> list[str]:
    """Counts and resources that Ray accepts and that start the wrong nodes or none."""
    types, head = config["available_node_types"], config["head_node_type"]
    workers = {name: node for name, node in types.items() if name != head}
    faults = [f"{name}: minimum above maximum" for name, w in workers.items() if w["min_workers"] > w["max_workers"]]
    if sum(node["max_workers"] for node in workers.values()) != config["max_workers"]:
        faults.append("max_workers is not the sum of the maxima")
    if types[head]["resources"].get("GPU") != 0:
        faults.append("the head offers GPUs")
    named = [(name, resource) for name, node in types.items() for resource in node["resources"]]
    return faults + [f"{name}: {key} in lower case" for name, key in named if key in ("cpu", "gpu")]


def command_faults(config: Config) -> list[str]:
    """Commands and images with which a cluster comes up that cannot grow or not last, or of another Ray version."""
    faults = []
    heads = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    if len(heads) != 1 or "--head" not in heads[0]:
        faults.append("not one head start command")
    if not all("--autoscaling-config=" in command for command in heads):
        faults.append("head without --autoscaling-config")
    if not any("ray start --address=$RAY_HEAD_IP" in command for command in config["worker_start_ray_commands"]):
        faults.append("workers do not join the head")
    watches = f"python /home/ray/tailorpo/drain_on_notice.py {config['provider']['type']} "
    if not any(watches in command and command.endswith("&") for command in config["worker_start_ray_commands"]):
        faults.append("workers hear no notice of the cloud")
    if not any("-c constraints.txt" in command for command in config["setup_commands"]):
        faults.append("nodes without the pinned versions")
    for key in ("head_image", "worker_image"):
        if not config["docker"].get(key, "").startswith(f"rayproject/ray:{pinned_ray()}-py3"):
            faults.append(f"{key} is not of Ray {pinned_ray()}")
    if "--env RAY_task_events_max_num_task_in_gcs=1000" not in config["docker"]["run_options"]:
        faults.append("a control store that grows")
    return faults


def exposure_faults(config: Config) -> list[str]:
    """Ways in from outside."""
    faults = network_faults(config)
    if not any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"]):
        faults.append("dashboard not on the loopback address")
    if "--env RAY_AUTH_MODE=token" not in config["docker"]["run_options"]:
        faults.append("no token asked for")
    if "--env RAY_USAGE_STATS_ENABLED=0" not in config["docker"]["run_options"]:
        faults.append("usage reported to Ray's makers")
    return faults


def network_faults(config: Config) -> list[str]:
    """Networks that are left to Ray, which opens SSH to the world on AWS and takes Google's default network on GCP."""
    nodes = {name: node["node_config"] for name, node in config["available_node_types"].items()}
    if config["provider"]["type"] == "aws":
        faults = [f"{name}: network left to Ray" for name, node in nodes.items() if not node.get("SecurityGroupIds")]
        return [*faults, "inbound rules beside the group"] if "security_group" in config["provider"] else faults
    faults = []
    for name, node in nodes.items():
        interfaces = node.get("networkInterfaces", [{}])
        if not node.get("tags") or not all(interface.get("subnetwork") for interface in interfaces):
            faults.append(f"{name}: network left to Ray")
        if name != config["head_node_type"] and any("accessConfigs" in interface for interface in interfaces):
            faults.append(f"{name}: a public address")
    return faults


def find_faults(config: Config) -> list[str]:
    """Everything wrong that Ray's schema and validate_config accept."""
    return resource_faults(config) + command_faults(config) + exposure_faults(config)


def test_ray_accepts_it(config: Config) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(config, schema)
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == config["available_node_types"].keys()


def misspell_a_key(config: Config) -> None:
    config["max_worker"] = config.pop("max_workers")


def name_a_missing_head(config: Config) -> None:
    config["head_node_type"] = "haed"


def raise_minima(config: Config) -> None:
    config["available_node_types"]["rollout"]["min_workers"] = config["max_workers"] + 1


@pytest.mark.parametrize("damage", [misspell_a_key, name_a_missing_head, raise_minima])
def test_ray_rejects_a_damaged_one(config: Config, damage: Callable[[Config], None]) -> None:
    damage(config)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(config))


def test_it_has_no_fault_that_ray_overlooks(config: Config) -> None:
    assert find_faults(config) == []


def put(value: Any, *keys: str, config: Config) -> None:
    """Set the entry at the end of `keys`."""
    for key in keys[:-1]:
        config = config[key]
    config[keys[-1]] = value


ROLLOUT = ("available_node_types", "rollout")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (partial(put, 17, *ROLLOUT, "min_workers"), "rollout: minimum above maximum"),
        (partial(put, 99, "max_workers"), "max_workers is not the sum of the maxima"),
        (partial(put, {"CPU": 4}, "available_node_types", "head", "resources"), "the head offers GPUs"),
        (partial(put, {"CPU": 8, "gpu": 1}, *ROLLOUT, "resources"), "rollout: gpu in lower case"),
        (partial(put, ["ray start --head"], "head_start_ray_commands"), "head without --autoscaling-config"),
        (partial(put, ["ray stop"], "worker_start_ray_commands"), "workers do not join the head"),
        (partial(put, ["ray stop"], "worker_start_ray_commands"), "workers hear no notice of the cloud"),
        (partial(put, ["pip install ray"], "setup_commands"), "nodes without the pinned versions"),
        (partial(put, "rayproject/ray:1.0.0-py311-cpu", "docker", "head_image"), "head_image is not of Ray"),
        (partial(put, {}, *ROLLOUT, "node_config"), "rollout: network left to Ray"),
        (partial(put, ["ray start --dashboard-host=0.0.0.0"], "head_start_ray_commands"), "dashboard not on"),
        (partial(put, [], "docker", "run_options"), "no token asked for"),
        (partial(put, [], "docker", "run_options"), "usage reported to Ray's makers"),
        (partial(put, [], "docker", "run_options"), "a control store that grows"),
    ],
)
def test_each_fault_is_found(config: Config, damage: Callable[..., None], fault: str) -> None:
    damage(config=config)
    assert any(found.startswith(fault) for found in find_faults(config))


def test_ways_in_that_one_cloud_knows_are_found() -> None:
    config = read_cluster(AWS)
    put({"GroupName": "open"}, "provider", "security_group", config=config)
    assert find_faults(config) == ["inbound rules beside the group"]
    config = read_cluster(GCP)
    types = config["available_node_types"]
    interfaces = types["head"]["node_config"]["networkInterfaces"]
    put(interfaces, *ROLLOUT, "node_config", "networkInterfaces", config=config)
    assert find_faults(config) == ["rollout: a public address"]


def test_only_what_a_run_can_lose_is_on_spot_machines() -> None:
    on_aws, on_gcp = (read_cluster(name)["available_node_types"] for name in (AWS, GCP))
    spot = {"head": False, "learner": False, "rollout": True, "reward": True}
    markets = {name: node["node_config"].get("InstanceMarketOptions") for name, node in on_aws.items()}
    assert markets == {name: {"MarketType": "spot"} if lost else None for name, lost in spot.items()}
    models = {name: node["node_config"].get("scheduling", {}).get("provisioningModel") for name, node in on_gcp.items()}
    assert models == {name: "SPOT" if lost else None for name, lost in spot.items()}


def test_mounted_file_system_is_in_the_cluster_region() -> None:
    config = read_cluster(AWS)
    regions = re.findall(r"\.efs\.([\w-]+)\.amazonaws\.com", " ".join(config["initialization_commands"]))
    assert regions == [config["provider"]["region"]]
    zones = config["provider"]["availability_zone"].split(",")
    assert all(zone.startswith(config["provider"]["region"]) for zone in zones)


def test_set_up_needs_only_what_is_mounted(config: Config) -> None:
    local = [ROOT / path for path in config["file_mounts"].values() if not path.startswith("~")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    described = {"pyproject.toml", project["readme"], *project["license-files"]}
    assert {path.name for path in local} == described | {"constraints.txt", "drain_on_notice.py"}
    assert all(path.is_file() for path in local)


@pytest.mark.parametrize("documented", [AWS, GCP, "README.md"])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_documented_command_starts_the_intended_nodes(name: str, documented: str) -> None:
    config, demands = read_any(name), demands_of(settings_of_command(documented_command(documented)))
    for role, demand in demands.items():
        assert nodes_started_for(config, demand) == {role: len(demand)}
    together = [demand for role in demands.values() for demand in role]
    assert nodes_started_for(config, together) == {role: len(demand) for role, demand in demands.items()}


def test_the_documented_commands_choose_nodes_by_the_same_settings() -> None:
    chosen = {tuple(cpu_counts(documented_command(name))) for name in (*DESCRIPTIONS, "README.md")}
    assert len(chosen) == 1 and chosen == {tuple(cpu_counts((ROOT / BASE).read_text(encoding="utf-8")))}


def cpu_counts(text: str) -> list[str]:
    """The overrides of a command that choose nodes."""
    return re.findall(r"\b\w+\.num_cpus=\d+", text)


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("path", WHOLE_RUNS, ids=lambda path: path.stem)
def test_every_shipped_run_fits_as_it_stands(name: str, path: Path) -> None:
    """Each worker has a node type that holds it, and all of them that a run may ever ask for have room at once.

    It is not the type of its role: without the CPU counts of the documented commands a learner goes to a spot node.
    """
    config, settings = read_any(name), load_settings(path)
    assert fits([*most_worker_requests(settings), CPUS_OF_THE_PLAN], nodes_at_maximum(config))
    demands = demands_of(settings)
    assert [nodes_started_for(config, demands[role]).keys() for role in ("learner", "reward")] == [{"reward"}] * 2
    assert nodes_started_for(config, demands["rollout"]).keys() <= {"reward", "rollout"}
    nodes_started_for(config, [demand for role in demands.values() for demand in role])


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_starts_the_intended_nodes_with_the_documented_settings(name: str, path: Path) -> None:
    config, demands = read_any(name), demands_of(load_settings(path, cpu_counts(documented_command(name))))
    assert {role: set(nodes_started_for(config, demand)) for role, demand in demands.items()} == {
        role: {role} for role in demands
    }


def test_a_shell_reads_every_start_command(config: Config) -> None:
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        # In parentheses, as Ray runs it.
        assert subprocess.run(["bash", "-n", "-c", f"({command})"], check=False).returncode == 0, command
