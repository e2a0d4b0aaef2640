"""The RayJob for Kubernetes.

It is held against a schema of the fields that it uses, written after the API references of KubeRay and Kubernetes and
compared by eye with the types in KubeRay's sources (ray-operator/apis/ray/v1, commit 0057210):
fields that are not known, wrong types and values that are none of the choices are refused. Rules between fields, which
KubeRay's operator checks, are not in the schema. Which pods come up says Ray's own reader of these descriptions, which
the autoscaler in the head's pod runs. No Kubernetes has seen the file here.
"""

import json
import shlex
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from cluster_files import (
    ROOT,
    Config,
    as_cluster,
    demands_of,
    nodes_started_for,
    pinned_ray,
    read_rayjob,
    settings_of_command,
)

SCHEMA = json.loads((ROOT / "tests" / "rayjob_schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def job() -> Config:
    return read_rayjob()[0]


def check(job: Config) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(job)


def pods_of(job: Config) -> dict[str, Any]:
    """The template of every kind of pod."""
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {
        "submitter": job["spec"]["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        **workers,
    }


def test_it_has_the_fields_of_a_rayjob_and_no_others(job: Config) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    check(job)


def misspell(job: Config) -> None:
    job["spec"]["shutdownAfterJobFinish"] = job["spec"].pop("shutdownAfterJobFinishes")


def give_a_number(job: Config) -> None:
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-gpus"] = 0


def leave_a_maximum_out(job: Config) -> None:
    del job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]


def forget_the_tag(job: Config) -> None:
    pods_of(job)["head"]["spec"]["containers"][0]["image"] = "registry.example/tailorpo"


def misspell_in_a_pod(job: Config) -> None:
    pods_of(job)["rollout"]["spec"]["nodeselector"] = {}


@pytest.mark.parametrize(
    "damage",
    [misspell, give_a_number, leave_a_maximum_out, forget_the_tag, misspell_in_a_pod],
    ids=lambda f: f.__name__,
)
def test_a_damaged_one_is_refused(job: Config, damage: Callable[[Config], None]) -> None:
    damage(job)
    with pytest.raises(jsonschema.ValidationError):
        check(job)


def test_its_command_starts_the_intended_pods(job: Config) -> None:
    config = as_cluster(job)
    assert config["available_node_types"]["headgroup"]["resources"]["GPU"] == 0
    demands = demands_of(settings_of_command(job["spec"]["entrypoint"]))
    for role, demand in demands.items():
        assert nodes_started_for(config, demand) == {role: len(demand)}


def test_a_second_try_resumes_the_run_that_the_first_began(job: Config) -> None:
    shell, option, script = shlex.split(job["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    settings = settings_of_command(script)
    folder = f"{settings.output_dir}/{settings.name}"
    assert script.startswith(f"if test -f {folder}/config.yaml; then exec python jobs/align.py --resume {folder};")
    # Ray joins the words of a submitted command again, and its shell must not find anything to replace in them.
    assert not set(script) & set('"$`\\')


def test_all_pods_are_of_one_image_and_of_the_pinned_ray(job: Config) -> None:
    assert len({pod["spec"]["containers"][0]["image"] for pod in pods_of(job).values()}) == 1
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned_ray()
    assert f"FROM rayproject/ray:{pinned_ray()}-py3" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_only_what_a_run_can_lose_is_on_spot_nodes(job: Config) -> None:
    spot = {
        role for role, pod in pods_of(job).items() if "cloud.google.com/gke-spot" in pod["spec"].get("nodeSelector", {})
    }
    assert spot == {"rollout", "reward"}


def test_a_pod_on_a_spot_node_leaves_in_time(job: Config) -> None:
    copied = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for role, pod in pods_of(job).items():
        hooks = pod["spec"]["containers"][0].get("lifecycle", {})
        if role not in ("rollout", "reward"):
            assert not hooks
            continue
        shell, option, script = hooks["preStop"]["exec"]["command"]
        program, _, pause = script.partition(" && ")
        assert (shell, option, program) == ("sh", "-c", "python deploy/drain_on_notice.py now")
        assert "deploy/drain_on_notice.py deploy/drain_on_notice.py\n" in copied
        # Kubernetes' 30 seconds hold the drain, the pause, and the end of Ray's processes.
        assert 10 <= int(pause.removeprefix("sleep ")) <= 20


def test_run_folders_lie_on_a_volume_that_every_pod_of_the_cluster_mounts(job: Config) -> None:
    output_dir = settings_of_command(job["spec"]["entrypoint"]).output_dir
    for role, pod in pods_of(job).items():
        mounts = pod["spec"]["containers"][0].get("volumeMounts", [])
        assert [mount["mountPath"] for mount in mounts] == ([] if role == "submitter" else [output_dir])


def test_nobody_outside_the_job_reaches_its_pods(job: Config) -> None:
    cluster, policy = job["spec"]["rayClusterSpec"], read_rayjob()[1]["spec"]
    assert cluster["authOptions"] == {"mode": "token"} and cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    label = policy["podSelector"]["matchLabels"]
    assert all(pod["metadata"]["labels"] == label for pod in pods_of(job).values())
    own, operator = policy["ingress"][0]["from"]
    assert policy["policyTypes"] == ["Ingress"] and own == {"podSelector": {"matchLabels": label}}
    assert operator["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}


def test_no_container_runs_as_root_and_no_secret_is_written_down(job: Config) -> None:
    pods = pods_of(job)
    del pods["submitter"]
    for role, pod in pods.items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"], role
        assert pod["spec"].get("automountServiceAccountToken", role == "head") is (role == "head")
        assert pod["spec"]["containers"][0]["env"] == [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
