"""A run that goes wrong, is stopped, is killed, and is taken up again ends as if nothing had happened."""

import ast
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from job_runs import (
    ITERATIONS,
    PLANTED_SECRETS,
    PROMPTS_IN_MANY_SCRIPTS,
    FinishedJob,
    RunningJob,
    run_align,
    write_run_config,
)
from safetensors.torch import load_file
from secret_search import assert_no_secret_shows, files_left_behind
from transformers import CLIPModel

from pipeline.prompts import load_train_prompts

pytest_plugins = ["model_fixtures", "job_fixtures"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def poisoned_run(
    miniature_model: Path, miniature_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FinishedJob, Path]:
    """A run whose reward is NaN, with secrets in its environment: what it printed, and its folder."""
    directory = tmp_path_factory.mktemp("poisoned")
    clip = directory / "clip"
    shutil.copytree(miniature_clip, clip)
    model = CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        model.logit_scale.fill_(torch.nan)
    model.save_pretrained(clip)
    config = write_run_config(directory, miniature_model, clip)
    return run_align("--config", config, variables=PLANTED_SECRETS), directory / "guided"


@pytest.fixture(scope="module")
def stopped_run(poisoned_run: tuple[FinishedJob, Path], miniature_clip: Path) -> tuple[FinishedJob, Path]:
    """The poisoned run after its reward was repaired, it was resumed, and Ctrl-C was pressed in its first iteration."""
    folder = poisoned_run[1]
    shutil.copytree(miniature_clip, folder.parent / "clip", dirs_exist_ok=True)
    job = RunningJob("--resume", folder)
    wait_for_iterations(job, folder, 1)
    # A terminal sends it to every process of the job.
    os.killpg(job.process.pid, signal.SIGINT)
    return job.wait(), folder


@pytest.fixture(scope="module")
def killed_run(stopped_run: tuple[FinishedJob, Path]) -> Path:
    """The folder of the stopped run after it was resumed, and was killed half-way.

    Its newest checkpoint was cut off, as if the machine had lost power with it.
    """
    folder = stopped_run[1]
    job = RunningJob("--resume", folder)
    try:
        wait_for_iterations(job, folder, 3)
    finally:
        job.kill()
    newest = max(manifest.parent for manifest in (folder / "checkpoints").glob("*/manifest.json"))
    os.truncate(newest / "learner.safetensors", 1000)
    return folder


def wait_for_iterations(job: RunningJob, folder: Path, count: int) -> None:
    while len(finished_iterations(folder)) < count:
        assert job.process.poll() is None, job.wait()
        time.sleep(0.01)


def finished_iterations(folder: Path) -> list[dict]:
    metrics = folder / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().split("\n")[:-1]] if metrics.exists() else []


def test_a_poisoned_reward_stops_the_run_with_one_readable_report(poisoned_run):
    job, folder = poisoned_run
    assert job.exit_code == 1
    lines = job.stderr.splitlines()
    what, prompt = lines[0].split(" for the prompt ")
    assert what == "error: NonFiniteScoreError: reward 'clip' returned nan"
    assert ast.literal_eval(prompt) in load_train_prompts(PROMPTS_IN_MANY_SCRIPTS)
    where, how_often, what_to_do = lines[1:4]
    assert where.startswith("where: in score") and " on reward-0, in collect on rollout-0, in batch " in where
    assert where.endswith(" of iteration 0, with policy version 0")
    assert " failed like this since the run was started" in how_often and "reward.path" in what_to_do
    assert lines[4].endswith(f"continue with: python jobs/align.py --resume {folder}")
    assert len(lines) == 6 and "Traceback" not in job.stdout
    details, logs = lines[5].removeprefix("Details: ").split("; logs of every process: ")
    assert details == f"{folder / 'error.log'}, {folder / 'log.jsonl'}"
    text = (folder / "error.log").read_text()
    assert text.startswith(lines[0].removeprefix("error: ")) and "RayTaskError" in text
    assert any("a batch of 4 trajectories" in file.read_text() for file in Path(logs).glob("worker-*.err"))


def test_a_poisoned_run_tells_its_story_in_lines(poisoned_run):
    lines = [json.loads(line) for line in (poisoned_run[1] / "log.jsonl").read_text().splitlines()]
    roles = {line["role"] for line in lines}
    assert roles == {"driver", "journal", "fleet", "learner"}
    (failure, *_) = (line for line in lines if line["level"] == "ERROR")
    assert (failure["role"], failure["iteration"]) == ("journal", 0) and "NonFiniteScoreError" in failure["message"]
    assert any(line["worker"] == "reward-0" and line["message"].startswith("ready") for line in lines)
    (*_, last) = (line["message"] for line in lines if line["role"] == "driver")
    assert last.startswith("ended early: NonFiniteScoreError")


def test_a_poisoned_run_leaves_its_folder_and_no_half_iteration(poisoned_run):
    folder = poisoned_run[1]
    assert (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()
    assert finished_iterations(folder) == [] and not (folder / "adapter").exists()


def test_a_poisoned_run_shows_no_secret_of_its_environment(poisoned_run):
    """Its failure is told in many places, and with the environments of several processes at hand."""
    job, folder = poisoned_run
    files = files_left_behind(folder, logs_of(job))
    assert {"error.log", "log.jsonl", "environment.json"} <= {path.name for path in files}
    assert any(path.name.startswith("worker-") for path in files)
    assert_no_secret_shows(job, files)


def logs_of(job: FinishedJob) -> Path:
    """Ray's, as the report of a failure names them."""
    return Path(job.stderr.strip().rpartition("; logs of every process: ")[2])


def test_a_stopped_run_ends_with_a_checkpoint_and_the_line_that_resumes(stopped_run):
    job, folder = stopped_run
    assert job.exit_code == 130
    announced, stopped = job.stderr.splitlines()
    assert announced.startswith("SIGINT: the work in progress has 600 s to end, an iteration with a checkpoint")
    assert stopped == (
        "stopped by SIGINT, with a checkpoint of all that was done; continue with: "
        f"python jobs/align.py --resume {folder}"
    )
    done = len(finished_iterations(folder))
    assert 1 <= done < ITERATIONS and (folder / f"checkpoints/iteration_{done:06d}/manifest.json").is_file()
    assert not (folder / "adapter").exists()


def test_a_killed_run_resumes_to_the_very_same_adapter(killed_run, undisturbed_run):
    assert 3 <= len(finished_iterations(killed_run)) < ITERATIONS
    job = run_align("--resume", killed_run)
    assert job.exit_code == 0, job.stderr
    assert "is passed over, its learner.safetensors is not the file that" in job.stderr
    undisturbed = undisturbed_run[1]
    found, expected = finished_iterations(killed_run), finished_iterations(undisturbed)
    assert [line["iteration"] for line in found] == list(range(ITERATIONS))
    assert [line["adapter_sha256"] for line in found] == [line["adapter_sha256"] for line in expected]
    for name in ("adapter", "adapter_ema"):
        file = f"{name}/pytorch_lora_weights.safetensors"
        resumed, uninterrupted = load_file(killed_run / file), load_file(undisturbed / file)
        assert resumed.keys() == uninterrupted.keys()
        assert all(torch.equal(resumed[key], uninterrupted[key]) for key in resumed)
    first = next(line for line in job.stdout.splitlines() if " iteration " in line)
    first_shown = int(first.split("/")[0].split()[-1])
    assert first_shown > 1, "the resumed run began anew"
