"""jobs/align.py from outside: what it refuses, what it prints, and what it leaves behind."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml
from diffusers import StableDiffusionPipeline
from event_files import read_events
from job_runs import ITERATIONS, PROMPTS_IN_MANY_SCRIPTS, REPOSITORY, FinishedJob, write_run_config
from PIL import Image
from settings import miniature_settings

from jobs.align import how_to_go_on, main, parse_arguments, run
from pipeline.config_loading import load_settings
from pipeline.evaluation.image_statistics import IMAGE_STATISTICS
from pipeline.prompts import load_train_prompts
from pipeline.report.evaluation_file import read_evaluation
from pipeline.report.pairs import read_pairs
from pipeline.step_preferences import records_schema
from pipeline.training_record import read_training_record

pytest_plugins = ["model_fixtures", "job_fixtures"]

PAIRS = 8 * 2
LATENT_SHAPE = (4, 8, 8)


@pytest.fixture(autouse=True)
def process_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main`, called in this process, takes paths from the folder it is started in."""
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def run_folder(undisturbed_run: tuple[FinishedJob, Path]) -> Path:
    return undisturbed_run[1]


@pytest.fixture
def metrics(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def test_settings_may_stand_on_both_sides_of_an_option():
    options = parse_arguments(["iterations=3", "--config", "run.yaml", "seed=1", "--dry-run", "name=a"])
    assert (options.overrides, options.dry_run) == (["iterations=3", "seed=1", "name=a"], True)


def test_a_run_that_another_process_began_meanwhile_is_not_begun_again(miniature_model, tmp_path):
    settings = miniature_settings(miniature_model, output_dir=str(tmp_path))
    (tmp_path / settings.name).mkdir()
    with pytest.raises(ValueError, match="exists; continue it by --resume"):
        run(settings, settings.location, begins=True)


def test_how_to_go_on_is_what_will_work(tmp_path):
    begin_again = "begin again: nothing was made yet"
    assert how_to_go_on(tmp_path, str(tmp_path)) == f"remove {tmp_path}, if it is there, and {begin_again}"
    assert how_to_go_on(tmp_path, "s3://bucket/runs/a") == begin_again
    (tmp_path / "config.yaml").touch()
    assert how_to_go_on(tmp_path, str(tmp_path)) == f"continue with: python jobs/align.py --resume {tmp_path}"


# What a finished run leaves behind


@pytest.mark.slow
def test_the_terminal_shows_every_iteration_and_the_table_and_nothing_else(undisturbed_run):
    job, folder = undisturbed_run
    assert job.stderr == ""
    # What it says every minute until it begins, which on busy cores takes longer.
    first, *rest = [line for line in job.stdout.splitlines() if "not ready yet, because they load" not in line]
    assert first == f"guided: Ray started, results in {folder}"
    assert [line.split()[1:3] for line in rest[:ITERATIONS]] == [
        ["iteration", f"{number + 1}/{ITERATIONS}"] for number in range(ITERATIONS)
    ]
    assert rest[ITERATIONS].startswith("aligned in ")
    assert "\n".join(rest[ITERATIONS + 1 :]) == (folder / "evaluation.md").read_text().rstrip("\n")


@pytest.mark.slow
def test_the_resolved_configuration_and_the_environment_are_kept(run_folder, miniature_model):
    settings = load_settings(run_folder / "config.yaml")
    assert Path(settings.model.path).resolve() == miniature_model
    assert settings.learner.micro_batch_size == 4 and settings.sampling.eta == 1.0
    environment = json.loads((run_folder / "environment.json").read_text())
    assert environment["packages"]["ray"] == ray.__version__
    assert environment["cluster"]["mode"] == "started" and environment["cluster"]["nodes"] == 1
    assert environment["cpus"] >= 1 and {"commit", "modified_files"} <= environment["git"].keys()
    assert environment["truncated_prompts"] == 0
    stated = json.loads((run_folder / "prompts.json").read_text())
    train, held_out = ((run_folder / stated[part]["file"]).read_text().splitlines() for part in ("train", "held_out"))
    assert stated["train"]["source"] == PROMPTS_IN_MANY_SCRIPTS
    assert train and held_out and sorted([*train, *held_out]) == sorted(load_train_prompts(PROMPTS_IN_MANY_SCRIPTS))


@pytest.mark.slow
def test_prompts_of_any_script_come_through_a_whole_run_as_they_are(run_folder):
    """Trained on, drawn for the evaluation, and told of by everything that tells of prompts."""
    stated = json.loads((run_folder / "prompts.json").read_text())
    train, held_out = ((run_folder / stated[part]["file"]).read_text().splitlines() for part in ("train", "held_out"))
    records = pd.concat(pd.read_parquet(file) for file in (run_folder / "records").glob("*.parquet"))
    assert set(records.prompt) <= set(train) and sum(not prompt.isascii() for prompt in set(records.prompt)) > 3
    pairs = read_pairs(run_folder)
    assert pairs is not None
    judged = pairs.index.get_level_values("prompt").unique()
    assert set(judged) <= set(held_out) and any(not prompt.isascii() for prompt in judged)
    assert set(pd.read_parquet(run_folder / "per_prompt.parquet").prompt) == set(judged)


@pytest.mark.slow
def test_metrics_have_one_object_per_iteration(metrics):
    assert [line["iteration"] for line in metrics] == [line["policy_version"] for line in metrics]
    assert [line["iteration"] for line in metrics] == list(range(ITERATIONS))
    assert len({line["adapter_sha256"] for line in metrics}) == ITERATIONS
    for line in metrics:
        assert line["pairs"] + line["tie_rate"] * PAIRS == pytest.approx(PAIRS)
        assert [len(line[name]) for name in ("step_reward", "step_gap", "step_accepted", "step_move")] == [2] * 4
        assert line["optimiser_steps"] == (line["iteration"] + 1) * PAIRS // 8 and line["skipped_steps"] == 0
        assert line["rollout_seconds"] > 0 and line["learn_seconds"] > 0
        assert line["gradient_norm"] > 0 and 0 <= line["implicit_accuracy"] <= 1


@pytest.mark.slow
def test_tensorboard_has_the_same_numbers(run_folder, metrics):
    (file,) = (run_folder / "tensorboard").iterdir()
    scalars = {
        (value.tag, event.step): value.simple_value for event in read_events(file) for value in event.summary.value
    }
    for line in metrics:
        assert scalars["reward", line["iteration"]] == pytest.approx(line["reward"])
        assert scalars["step_gap/1", line["iteration"]] == pytest.approx(line["step_gap"][1])


@pytest.mark.slow
def test_sample_grids_are_drawn_when_due(run_folder):
    names = sorted(path.name for path in (run_folder / "samples").iterdir())
    assert names == [f"iteration_{iteration:06d}.png" for iteration in (0, 2, 4, ITERATIONS)]
    sizes = {Image.open(run_folder / "samples" / name).size for name in names}
    assert sizes == {(32, 32)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter", "adapter_ema"])
def test_stock_diffusers_loads_the_adapters(run_folder, miniature_model, name):
    pipeline = StableDiffusionPipeline.from_pretrained(miniature_model, safety_checker=None)
    pipeline.load_lora_weights(run_folder / name)
    (adapter,) = pipeline.get_list_adapters()["unet"]
    lora_b = [value for key, value in pipeline.unet.named_parameters() if f"lora_B.{adapter}" in key]
    assert lora_b and all(value.abs().max() > 0 for value in lora_b)
    assert "TailorPO-G" in (run_folder / name / "README.md").read_text()
    record = read_training_record(str(run_folder / name))
    assert record is not None and record.method == "TailorPO-G" and record.rewards[0].name == "clip"


@pytest.mark.slow
def test_records_open_in_pandas(run_folder):
    files = sorted((run_folder / "records").iterdir())
    assert [file.name for file in files] == [
        f"iteration_{iteration:06d}_worker_000.parquet" for iteration in range(ITERATIONS)
    ]
    frame = pd.read_parquet(files[1])
    assert list(frame.columns) == records_schema(LATENT_SHAPE).names
    assert sorted(frame["row"]) == list(range(PAIRS)) and set(frame["iteration"]) == {1}
    assert len(frame["x_t"][0]) == math.prod(LATENT_SHAPE)


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept(run_folder):
    kept = sorted(path.name for path in (run_folder / "checkpoints").iterdir() if path.is_dir())
    assert kept == [f"iteration_{iteration:06d}" for iteration in (ITERATIONS - 1, ITERATIONS)]


@pytest.mark.slow
def test_the_summary_the_table_and_the_picture_tell_the_same_comparison(run_folder, metrics):
    summary = json.loads((run_folder / "summary.json").read_text())
    comparison = summary["evaluation"]["clip"]
    assert summary["last_iteration"] == metrics[-1] and summary["trajectories"] == 8 * ITERATIONS
    assert summary["train_seconds"] == metrics[-1]["seconds_spent"] == sum(line["seconds"] for line in metrics)
    assert comparison["pairs"] == 4
    assert comparison["difference"] == pytest.approx(comparison["aligned_mean"] - comparison["base_mean"])
    assert comparison["low"] <= comparison["difference"] <= comparison["high"] and comparison["difference"] != 0
    read = read_evaluation(run_folder)
    assert read is not None and read.rewards["clip"].model_dump() == comparison
    assert set(read.hacking) == {*IMAGE_STATISTICS, "diversity", "drift"}, "four pairs are of two prompts"
    assert read.verdict is not None and read.hacking["drift"].aligned > 0
    pairs = read_pairs(run_folder)
    assert pairs is not None and set(pairs.index.unique("measure")) == {*read.rewards, *IMAGE_STATISTICS, "drift"}
    assert (pairs.loc["clip"].aligned - pairs.loc["clip"].base).mean() == pytest.approx(comparison["difference"])
    assert pd.read_parquet(run_folder / "per_prompt.parquet").images.eq(2).all()
    table = (run_folder / "evaluation.md").read_text()
    assert f"| clip | {comparison['base_mean']:.4f} | {comparison['aligned_mean']:.4f} |" in table
    assert Image.open(run_folder / "before_after.png").width > 2 * 16


@pytest.mark.slow
def test_the_report_lies_in_the_folder_and_the_terminal_says_so(undisturbed_run, metrics):
    job, folder = undisturbed_run
    assert f"adapter in {folder / 'adapter'}, report in {folder / 'report.html'}" in job.stdout
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{ITERATIONS} of {ITERATIONS} iterations are done" in page and page.count("data:image/") > 3 + 6 + 5
    curves = pd.read_parquet(folder / "report_curves.parquet")
    assert curves[curves.metric == "reward"].value.tolist() == [line["reward"] for line in metrics]


# What is refused before any actor starts


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message with which `main` ends; it must not have come as far as starting Ray."""
    with pytest.raises(SystemExit) as exit_information:
        main(arguments)
    assert not ray.is_initialized()
    assert capsys.readouterr().out == ""
    return str(exit_information.value)


@pytest.fixture
def config(miniature_model: Path, miniature_clip: Path, tmp_path: Path) -> Path:
    return write_run_config(tmp_path, miniature_model, miniature_clip)


def test_a_misspelt_setting_is_named_with_the_nearest_known_one(config, capsys):
    message = refusal(["--config", str(config), "rollout.batchsize=4"], capsys)
    assert message.startswith("error: unknown setting rollout.batchsize; did you mean batch_size?")


def test_an_existing_run_folder_is_refused_and_left_as_it_is(config, tmp_path, capsys):
    (tmp_path / "guided").mkdir()
    message = refusal(["--config", str(config)], capsys)
    assert f"{tmp_path / 'guided'} exists" in message and "--resume" in message
    assert list((tmp_path / "guided").iterdir()) == []


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.path=/nowhere", ["model.path '/nowhere'"]),
        ("reward={name: jpeg_compressibility}", ["method.guidance needs a differentiable reward", "jpeg_compressi"]),
        ("reward.path=/nowhere/clip", ["/nowhere/clip"]),
        ("method.trained_steps=[4, 1]", ["includes 1, the last step"]),
        ("rollout.batch_size=3", ["rollout.trajectories=8 is no multiple of rollout.batch_size=3"]),
        ("learner.num_workers=3", ["16 records", "num_workers=3"]),
        ("prompts.train=/nowhere/prompts.txt", ["/nowhere/prompts.txt"]),
        ("tracking=[{name: mlflow, uri: 'gopher://host'}]", ["tracking names mlflow with uri='gopher://host'"]),
    ],
)
def test_a_run_that_cannot_succeed_is_refused(override, parts, config, tmp_path, capsys):
    message = refusal(["--config", str(config), override], capsys)
    assert message.startswith("error: ")
    assert all(part in message for part in parts), message
    assert not (tmp_path / "guided").exists()


def test_prompts_that_the_final_evaluation_cannot_score_are_refused_before_the_training(config, tmp_path, capsys):
    judged = "evaluation.rewards=[{name: scene_judge, path: models/demo-judge}]"
    overrides = [judged, "prompts.split=null", "prompts.held_out=animals"]
    message = refusal(["--config", str(config), *overrides], capsys)
    assert "prompts.held_out cannot be scored by 'scene_judge'" in message and "name other prompts" in message
    assert not (tmp_path / "guided").exists()


def test_only_a_run_folder_can_be_resumed(tmp_path, capsys):
    assert f"{tmp_path} is no run folder" in refusal(["--resume", str(tmp_path)], capsys)


def test_a_resumed_run_takes_no_overrides(tmp_path, capsys):
    assert "resumed as it was" in refusal(["--resume", str(tmp_path), "seed=3"], capsys)


def test_a_dry_run_prints_the_plan_and_starts_nothing(config, tmp_path, capsys):
    (tmp_path / "guided").mkdir()
    main(["--config", str(config), "--dry-run", "rollout.batch_size=2"])
    plan = yaml.safe_load(capsys.readouterr().out)
    arithmetic = plan.pop("arithmetic")
    assert plan["rollout"]["batch_size"] == 2 and plan["sampling"]["eta"] == 1.0
    # T = 4, K = 2, guided: T + K + K policy calls, 3K + 1 scored images, and K images whose gradient is taken.
    assert arithmetic["policy_calls_per_trajectory"] == 8
    assert arithmetic["reference_calls_per_trajectory"] == 2
    assert arithmetic["decoded_images_per_trajectory"] == 9
    assert arithmetic["total_trajectories"] == 8 * ITERATIONS
    assert arithmetic["total_optimiser_steps"] == ITERATIONS * PAIRS // 8
    assert not ray.is_initialized() and list((tmp_path / "guided").iterdir()) == []


def test_a_dry_run_does_not_import_ray(config, tmp_path):
    """A module named ray that fails to import stands in the way of whoever tries."""
    (tmp_path / "ray.py").write_text("raise RuntimeError('a dry run needs no Ray')\n")
    script = tmp_path / "dry_run.py"
    script.write_text("from jobs.align import main\nmain()\n")
    finished = subprocess.run(
        [sys.executable, str(script), "--config", str(config), "--dry-run"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert yaml.safe_load(finished.stdout)["name"] == "guided"
