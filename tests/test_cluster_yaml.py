"""cluster.yaml: Ray's own validation, what Ray lets through, and which nodes the documented command starts."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.config_loading import load_settings

ROOT = Path(__file__).resolve().parents[1]
Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    # Anchors make node types share objects; the way through JSON gives each its own, so that a test can change one.
    return json.loads(json.dumps(yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))))


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
    """Start commands and images with which a cluster comes up that cannot grow, or of another Ray version."""
    faults = []
    heads = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    if len(heads) != 1 or "--head" not in heads[0]:
        faults.append("not one head start command")
    if not all("--autoscaling-config=" in command for command in heads):
        faults.append("head without --autoscaling-config")
    if not any("ray start --address=$RAY_HEAD_IP" in command for command in config["worker_start_ray_commands"]):
        faults.append("workers do not join the head")
    if not any("-c constraints.txt" in command for command in config["setup_commands"]):
        faults.append("nodes without the pinned versions")
    version = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    for key in ("head_image", "worker_image"):
        if not config["docker"].get(key, "").startswith(f"rayproject/ray:{version[1]}-py3"):
            faults.append(f"{key} is not of Ray {version[1]}")
    return faults


def exposure_faults(config: Config) -> list[str]:
    """Ways in from outside."""
    nodes = config["available_node_types"].items()
    faults = [f"{name}: Ray would open SSH" for name, node in nodes if not node["node_config"].get("SecurityGroupIds")]
    if "security_group" in config["provider"]:
        faults.append("inbound rules beside the security group")
    if not any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"]):
        faults.append("dashboard not on the loopback address")
    if "--env RAY_AUTH_MODE=token" not in config["docker"]["run_options"]:
        faults.append("no token asked for")
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
        (partial(put, ["pip install ray"], "setup_commands"), "nodes without the pinned versions"),
        (partial(put, "rayproject/ray:1.0.0-py311-cpu", "docker", "head_image"), "head_image is not of Ray"),
        (partial(put, {}, *ROLLOUT, "node_config"), "rollout: Ray would open SSH"),
        (partial(put, {"GroupName": "open"}, "provider", "security_group"), "inbound rules"),
        (partial(put, ["ray start --dashboard-host=0.0.0.0"], "head_start_ray_commands"), "dashboard not on"),
        (partial(put, [], "docker", "run_options"), "no token asked for"),
    ],
)
def test_each_fault_is_found(config: Config, damage: Callable[..., None], fault: str) -> None:
    damage(config=config)
    assert any(found.startswith(fault) for found in find_faults(config))


def test_mounted_file_system_is_in_the_cluster_region(config: Config) -> None:
    regions = re.findall(r"\.efs\.([\w-]+)\.amazonaws\.com", " ".join(config["initialization_commands"]))
    assert regions == [config["provider"]["region"]]
    zones = config["provider"]["availability_zone"].split(",")
    assert all(zone.startswith(config["provider"]["region"]) for zone in zones)


def test_set_up_needs_only_what_is_mounted(config: Config) -> None:
    local = [ROOT / path for path in config["file_mounts"].values() if not path.startswith("~")]
    assert {path.name for path in local} == {"pyproject.toml", "constraints.txt"}
    assert all(path.is_file() for path in local)


def documented_command() -> tuple[Path, list[str]]:
    """Config file and overrides of the job that the head comment of cluster.yaml submits."""
    header = (ROOT / "cluster.yaml").read_text(encoding="utf-8").split("\n#\n# The CPU counts")[0]
    command = header[header.index("python jobs/align.py") :].split("# ray down")[0]
    config_file = re.search(r"--config (\S+)", command)
    assert config_file is not None
    return ROOT / config_file[1], re.findall(r"\b[a-z_]+(?:\.[a-z_]+)*=\S+", command)


def nodes_started_for(config: Config, demands: list[dict[str, float]]) -> dict[str, int]:
    """Node types and counts that Ray's scheduler launches for `demands` when only the head runs."""
    head = config["head_node_type"]
    types = {name: {"max_workers": 0} | node for name, node in config["available_node_types"].items()}
    scorer = partial(_default_utilization_scorer, node_availability_summary=None)
    started, unmet = get_nodes_for(types, {head: 1}, head, config["max_workers"], demands, scorer)
    assert unmet == []
    return dict(started)


def test_documented_command_starts_the_intended_nodes(config: Config) -> None:
    settings = load_settings(*documented_command())
    roles = {
        "rollout": (settings.rollout, settings.rollout.max_workers),
        "reward": (settings.reward_actors, settings.reward_actors.max_workers),
        "learner": (settings.learner, settings.learner.num_workers),
    }
    wanted = {name: count for name, (_, count) in roles.items()}
    demands = {name: {"CPU": role.num_cpus, "GPU": role.num_gpus} for name, (role, _) in roles.items()}
    for name, count in wanted.items():
        assert nodes_started_for(config, [demands[name]] * count) == {name: count}
    together = [demands[name] for name, count in wanted.items() for _ in range(count)]
    assert nodes_started_for(config, together) == wanted
