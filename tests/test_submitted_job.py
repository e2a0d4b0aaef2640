"""A run submitted to a cluster as README says: what is sent, how it is followed, stopped and submitted again."""

import json
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from eventually import PATIENCE_S
from job_runs import REPOSITORY
from ray._private.runtime_env.packaging import create_package
from ray_head import RayHead, ray_head
from settings import miniature_values

from pipeline.environment import checksum_of_code

pytest_plugins = ["model_fixtures"]

ITERATIONS, FEWER_ITERATIONS = 16, 3

# The models of the demo are 13 MB of what is sent; Ray refuses more than 500.
LARGEST_PACKAGE = 20 * 2**20

# Namespaces in which Ray keeps what all jobs of a cluster share.
RAYS_OWN = re.compile(r"_.*|AutoscalingCoordinator")
# Ray Train's, which outlives a controller that was killed, and on a busy machine by minutes.
RAYS_CLEANER = "PlacementGroupCleaner"


def documented_submission() -> list[str]:
    """The words of `ray job submit` in README."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    command = re.search(r"^    ray (job submit .*)$", readme, re.MULTILINE)
    assert command is not None
    return shlex.split(command[1])


def submission(head: RayHead, *job: str, options: tuple[str, ...] = ()) -> list[str]:
    """README's words for another head and with other arguments of jobs/align.py."""
    words = documented_submission()
    end_of_options = words.index("--")
    words[words.index("--address") + 1] = head.address
    assert words[end_of_options + 1 :][:2] == ["python", "jobs/align.py"]
    return [*words[:end_of_options], *options, "--", "python", "jobs/align.py", *job]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(num_cpus=4) as started:
        yield started


def write_config(model: Path, directory: Path, **sections: Any) -> Path:
    """Read by the job on this machine; its paths hold wherever the job's working directory is."""
    values = miniature_values(model, output_dir=str(directory), samples={"every": 100}, **sections)
    file = directory / f"{values['name']}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def finished(folder: Path) -> list[dict[str, Any]]:
    """The iterations that are written down."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def checkpoint_of(folder: Path) -> int:
    """The iteration that comes next by the newest checkpoint."""
    return max(int(path.name.removeprefix("iteration_")) for path in (folder / "checkpoints").glob("iteration_*"))


def wait_for_iterations(folder: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(finished(folder)) < count:
        assert time.monotonic() < deadline, f"{folder} has {len(finished(folder))} iterations"
        time.sleep(0.05)


def wait_until_dead(head: RayHead, job_id: str) -> None:
    """Wait until a job that was stopped has left nothing but what Ray keeps for all jobs."""
    deadline = time.monotonic() + PATIENCE_S
    while living := [actor for actor in head.actors_of(job_id) if actor["state"] != "DEAD" and not is_shared(actor)]:
        assert time.monotonic() < deadline, living
        time.sleep(0.2)


def named_actors(head: RayHead, job_id: str) -> list[str]:
    """Names that a job has given to actors, of which it has some."""
    actors = head.actors_of(job_id)
    assert len(actors) > 5
    return [actor["name"] for actor in actors if actor["name"] and not is_shared(actor)]


def is_shared(actor: dict[str, Any]) -> bool:
    return bool(actor["name"] and RAYS_OWN.fullmatch(actor["ray_namespace"])) or actor["class_name"] == RAYS_CLEANER


@pytest.mark.slow
def test_a_submitted_run_is_followed_and_stopped_and_submitted_again_to_its_end_beside_another(
    head: RayHead, miniature_model: Path, tmp_path: Path
) -> None:
    folder, other = tmp_path / "miniature", tmp_path / "other"
    config = write_config(miniature_model, tmp_path, iterations=ITERATIONS)
    options = ("--no-wait", "--submission-id", "first")
    submitted = head.ray(*submission(head, "--config", str(config), options=options))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    follower = head.start("job", "logs", "--address", head.address, "--follow", "first")
    wait_for_iterations(folder, 1)
    # The same run under another name, on the same cluster at the same time.
    beside = write_config(miniature_model, tmp_path, name=other.name, iterations=FEWER_ITERATIONS)
    options = ("--no-wait", "--submission-id", "other")
    submitted = head.ray(*submission(head, "--config", str(beside), options=options))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    stopped = head.ray("job", "stop", "--address", head.address, "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr

    job = head.ask("/api/jobs/first")[1]
    assert job["status"] == "STOPPED" and 1 <= len(finished(folder)) < ITERATIONS
    followed, _ = follower.communicate(timeout=PATIENCE_S)
    # It was given the time to end its iteration, and nothing that is done will be done again.
    assert f"continue with: python jobs/align.py --resume {folder}" in followed
    assert checkpoint_of(folder) == len(finished(folder))
    assert f"miniature: Ray joined, results in {folder}" in followed and f"iteration 1/{ITERATIONS}" in followed
    assert named_actors(head, job["job_id"]) == [], "another run's would be taken for them"
    wait_until_dead(head, job["job_id"])

    resumed = head.ray(*submission(head, "--resume", str(folder), options=("--submission-id", "resumed")))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"iteration {ITERATIONS}/{ITERATIONS}" in resumed.stdout and "aligned in" in resumed.stdout
    assert [line["iteration"] for line in finished(folder)] == list(range(ITERATIONS))
    assert (folder / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["git"] is None and environment["code_sha256"] == checksum_of_code(REPOSITORY)
    assert environment["cluster"]["mode"] == "joined" and head.environment["RAY_AUTH_TOKEN"] not in str(environment)

    followed = head.ray("job", "logs", "--address", head.address, "--follow", "other")
    assert "aligned in" in followed.stdout, followed.stdout + followed.stderr
    jobs = [head.ask(f"/api/jobs/{name}")[1] for name in ("resumed", "other")]
    assert max(job["start_time"] for job in jobs) < min(job["end_time"] for job in jobs), "they did not meet"
    adapters = [[line["adapter_sha256"] for line in finished(run)] for run in (other, folder)]
    assert len(adapters[0]) == FEWER_ITERATIONS and adapters[0] == adapters[1][:FEWER_ITERATIONS]
    last = finished(other)[-1]
    assert last["lost/rollout"] == last["lost/reward"] == 0, "the other job's end took workers along"


@pytest.mark.slow
def test_nobody_submits_without_the_token(head: RayHead) -> None:
    assert head.ask("/api/jobs/")[0] == 200
    assert head.ask("/api/jobs/", token="")[0] == 401
    assert head.ask("/api/jobs/", token="0" * 64)[0] == 403


def test_what_is_sent_to_the_cluster_is_the_code_and_the_demo(tmp_path: Path) -> None:
    create_package(str(REPOSITORY), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size < LARGEST_PACKAGE
    with ZipFile(tmp_path / "package.zip") as package:
        sizes = {info.filename: info.file_size for info in package.infolist() if not info.is_dir()}
    top = {name.split("/")[0] for name in sizes}
    assert {"pipeline", "actors", "jobs", "configs", "models", "examples"} <= top
    assert not {".git", ".venv", ".ci", "benchmarks", "deploy", "docs", "results", "runs", "tests"} & top
    assert sum(size for name, size in sizes.items() if not name.startswith("models/")) < 2 * 2**20


def test_secrets_that_lie_beside_the_code_are_not_sent(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in (".env", ".netrc", "jobs/.env", "jobs/align.py", "runs/demo/config.yaml"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("secret", encoding="utf-8")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(REPOSITORY / name, repository)
    create_package(str(repository), tmp_path / "package.zip", include_gitignore=True)
    with ZipFile(tmp_path / "package.zip") as package:
        assert set(package.namelist()) == {".gitignore", ".rayignore", "jobs/align.py"}
