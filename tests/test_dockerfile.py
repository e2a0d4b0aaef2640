"""The Dockerfile and what goes into its image, as far as that is seen without building it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_files import AWS, GCP, ROOT, read_cluster

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINTER = shutil.which("hadolint", path=str(Path(sys.executable).parent))


def instructions() -> list[tuple[str, str]]:
    """Word and arguments of every instruction, lines that continue joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line]


def copied() -> list[str]:
    """What of the repository is copied into the image."""
    words = [arguments.split() for word, arguments in instructions() if word == "COPY"]
    return [path for _, *paths, _ in words for path in paths]


@pytest.mark.skipif(LINTER is None, reason="hadolint is not installed; it comes for x86-64 alone")
def test_the_linter_has_nothing_to_say() -> None:
    assert LINTER is not None
    found = subprocess.run([LINTER, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_the_image_begins_where_the_nodes_of_clouds_do() -> None:
    assert {read_cluster(name)["docker"]["worker_image"] for name in (AWS, GCP)} == {instructions()[0][1]}


def test_everything_that_a_job_needs_is_copied_and_nothing_else_gets_near() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    everything, *rules = [line for line in lines if not line.startswith("#")]
    assert everything == "*"
    assert sorted(rules) == sorted(["**/__pycache__", "**/*.py[cod]", *(f"!{path}" for path in copied())])
    assert all((ROOT / path).exists() for path in copied())
    floors = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert floors and floors | {"configs", "models"} <= {path.rstrip("/") for path in copied()}


def test_a_job_finds_all_that_it_needs_in_what_is_copied(tmp_path: Path) -> None:
    """As in the image, where nothing else of the repository lies and PYTHONPATH is the folder of the code."""
    _, *rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    left_out = shutil.ignore_patterns(*(rule.removeprefix("**/") for rule in rules if rule.startswith("**/")))
    for path in copied():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, tmp_path / path, ignore=left_out)
        else:
            shutil.copy(ROOT / path, tmp_path / path)
    command = [sys.executable, "jobs/align.py", "--config", "configs/demo.yaml", "--dry-run"]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "arithmetic:" in run.stdout


def test_the_versions_are_the_pinned_ones_and_no_secret_is_asked_for() -> None:
    runs = [arguments for word, arguments in instructions() if word == "RUN"]
    assert [run for run in runs if "pip" in run] == ["pip install --no-cache-dir --no-input -c constraints.txt ."]
    assert not {"ADD", "ARG", "USER"} & {word for word, _ in instructions()}
    (environment,) = [dict(part.split("=") for part in line.split()) for word, line in instructions() if word == "ENV"]
    assert environment.keys() == {
        "PYTHONPATH",
        "RAY_AUTH_MODE",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
        "RAY_JOB_STOP_WAIT_TIME_S",
        "RAY_USAGE_STATS_ENABLED",
        "RAY_task_events_max_num_task_in_gcs",
        "RAY_num_workers_soft_limit",
    }
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_packages_are_installed_before_the_code_that_changes_more_often() -> None:
    words = [f"{word} {arguments}" for word, arguments in instructions()]
    installed = next(place for place, text in enumerate(words) if "pip install" in text)
    assert all(place > installed for place, text in enumerate(words) if re.fullmatch(r"COPY \S+ (\w+/) \1", text))
