"""jobs/evaluate.py: adapters from elsewhere against their base model, on actors, and what it refuses before any."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from loras import write_diffusers_lora, write_kohya_lora
from miniature import write_pipeline
from PIL import Image
from policies import make_policy
from settings import miniature_settings

from actors import adapter_evaluation
from actors.adapter_evaluation import UnscoredAdaptersError, evaluate_adapters
from actors.cluster import ClusterInfo
from jobs.evaluate import main
from jobs.report import main as report
from pipeline.adapter import export_adapter
from pipeline.config import RewardSettings
from pipeline.evaluation.folder import checksum_of_prompts, is_evaluated, open_folder
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.generation import evaluation_batch, generate_latents
from pipeline.lora_file import read_lora
from pipeline.lora_policy import LoraPolicy
from pipeline.report.evaluation_file import read_evaluation
from pipeline.reward_models import RewardModels
from pipeline.rewards.base import NonFiniteImageError, NonFiniteScoreError
from pipeline.scoring import RewardError
from pipeline.training_record import training_record

pytest_plugins = ["model_fixtures"]

PROMPTS = ["a red circle", "a blue star", "a green ring"]
IMAGES = 2
HALVES, TIRES = "evaluation_rewards:Halves", "evaluation_rewards:Tires"
FILES = {
    "best.png",
    "median.png",
    "worst.png",
    "evaluation.json",
    "evaluation.md",
    "pairs.parquet",
    "per_prompt.parquet",
}
SETTINGS = ["sampling.num_steps=2", "batch_size=6", "rollout.num_cpus=0.1", "reward_actors.num_cpus=0.1"]


class Adapters(NamedTuple):
    """Two from elsewhere, and one that a run on JPEG exported."""

    style: Path
    kohya: Path
    own: Path
    prompts: Path


@pytest.fixture(scope="module")
def adapters(miniature_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    directory = tmp_path_factory.mktemp("adapters")
    prompts = directory / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    settings = miniature_settings(miniature_model)
    own = directory / "run" / "adapter"
    own.parent.mkdir()
    export_adapter(make_policy(settings, adapter_scale=0.3), own, "card", training_record(settings))
    style = write_diffusers_lora(miniature_model, directory / "style")
    return Adapters(style, write_kohya_lora(miniature_model, directory / "kohya.safetensors"), own, prompts)


@pytest.fixture(autouse=True)
def process_of_a_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`main`, called in this process, sets variables of it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def arguments(adapters: Adapters, model: Path, output: Path, *names: Path, rewards: list[str]) -> list[str]:
    given = [part for path in names for part in ("--adapter", str(path))]
    common = ["--prompts", str(adapters.prompts), "--images-per-prompt", str(IMAGES), "--model", str(model)]
    return [*given, *common, "--output", str(output), "--rewards", *rewards, "--set", *SETTINGS]


def in_a_data_set(prompts: list[str], directory: Path) -> list[str]:
    """Arguments that take `prompts` from the column of a file, which is written."""
    rows = "".join(f"{number},{prompt}\n" for number, prompt in enumerate(prompts))
    (directory / "prompts.csv").write_text(f"number,caption\n{rows}")
    return ["--prompts", str(directory / "prompts.csv"), "--prompt-column", "caption"]


def settings_in(folder: Path) -> AdapterEvaluationSettings:
    return AdapterEvaluationSettings.model_validate(yaml.safe_load((folder / "evaluation.yaml").read_text()))


class Evaluated(NamedTuple):
    """An evaluation of all three that failed at the third, and was taken up by the same command."""

    folder: Path
    error: str
    left: set[str]
    first: str
    second: str


@pytest.fixture(scope="module")
def evaluated(
    adapters: Adapters,
    miniature_model: Path,
    miniature_clip: Path,
    ray_session: ClusterInfo,
    tmp_path_factory: pytest.TempPathFactory,
) -> Evaluated:
    output = tmp_path_factory.mktemp("evaluation") / "all"
    # Enough calls for the base model and two adapters; a fresh actor then has enough for the third.
    rewards = [f"clip={miniature_clip}", "jpeg_compressibility", HALVES, f"{TIRES}=3"]
    given = arguments(adapters, miniature_model, output, adapters.style, adapters.kohya, adapters.own, rewards=rewards)
    given += in_a_data_set(PROMPTS, tmp_path_factory.mktemp("prompts"))
    with redirect_stdout(StringIO()) as first, pytest.raises(SystemExit) as ended:
        main(given)
    left = {path.parent.name for path in output.glob("*/evaluation.json")}
    with redirect_stdout(StringIO()) as second:
        main(given)
    return Evaluated(output, str(ended.value), left, first.getvalue(), second.getvalue())


@pytest.fixture
def folder(evaluated: Evaluated) -> Path:
    return evaluated.folder


# What a finished evaluation leaves behind


def test_every_adapter_has_its_folder(folder):
    folders = {path.name: {file.name for file in path.iterdir()} for path in folder.iterdir() if path.is_dir()}
    assert folders == {"style": FILES, "kohya": FILES, "run": FILES}
    for kind in ("best", "median", "worst"):
        assert Image.open(folder / "style" / f"{kind}.png").width > 2 * 192


def test_the_actors_draw_what_one_process_draws(folder, adapters, miniature_model, miniature_clip):
    settings = settings_in(folder)
    policy = LoraPolicy.load(settings.model, None, settings.sampling, settings.seed)
    models = RewardModels(settings)
    batch = evaluation_batch(PROMPTS, 0, len(PROMPTS) * IMAGES)
    for path in (adapters.kohya, adapters.style):
        policy.hold(read_lora(str(path)))
        latents = generate_latents(policy, batch, settings.seed)
        expected = models.evaluate(latents, batch.prompts, settings.rewards)
        pairs = pd.read_parquet(folder / path.stem / "pairs.parquet")
        clip, jpeg = (pairs[pairs.measure == name] for name in ("clip", "jpeg_compressibility"))
        assert clip.prompt.tolist() == list(batch.prompts) and clip["sample"].tolist() == list(batch.samples)
        np.testing.assert_array_equal(clip.aligned, expected.scores[:, 0].astype(np.float64))
        np.testing.assert_array_equal(jpeg.aligned, expected.scores[:, 1].astype(np.float64))
    with policy.reference():
        base = models.evaluate(generate_latents(policy, batch, settings.seed), batch.prompts, settings.rewards)
    np.testing.assert_array_equal(jpeg.base, base.scores[:, 1].astype(np.float64))
    assert (jpeg.base != jpeg.aligned).any()


def test_every_measure_is_compared(folder):
    evaluation = read_evaluation(folder / "kohya")
    assert evaluation is not None
    assert list(evaluation.rewards) == [
        *("clip", "jpeg_compressibility", HALVES, TIRES),
        *(f"{reward}: {half}" for reward in (HALVES, TIRES) for half in ("left", "right")),
    ]
    assert [row.pairs for row in evaluation.rewards.values()] == [6, 6, 6, 6, 6, 4, 6, 4]
    assert set(evaluation.hacking) >= {"saturation", "near-black share", "edge density", "diversity", "drift"}
    assert evaluation.hacking["drift"].base == 0 < evaluation.hacking["drift"].low
    assert evaluation.hacking["diversity"].base > 0
    assert "Drift" in (evaluation.verdict or "")


def test_what_is_held_out_is_told(folder):
    told = json.loads((folder / "run" / "evaluation.json").read_text())
    assert told["held_out_rewards"] == ["clip", HALVES, TIRES], "the run was trained on JPEG"
    text = (folder / "evaluation.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## style", "## kohya", "## run"]
    assert f"trained on: clip, {HALVES}, {TIRES}." in text


def test_the_report_shows_intervals_measures_and_pictures(folder, tmp_path, capsys):
    report([str(folder), "--output", str(tmp_path)])
    assert capsys.readouterr().out == f"report in {tmp_path / 'report.html'}\n"
    page, markdown = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert page == (folder / "report.html").read_text()
    assert page.count("data:image/") >= 9
    row = read_evaluation(folder / "style").rewards["clip"]
    assert f"| clip | style | {row.base_mean:.4f} |" in markdown and "| diversity | kohya |" in markdown
    assert "own spread" in markdown and "3 of 3 adapters are through" in markdown


def test_a_failure_keeps_what_is_through_and_the_same_command_goes_on(evaluated):
    assert evaluated.error.startswith(
        "error: run: NonFiniteScoreError: reward 'tires' returned nan for the prompt 'a red circle'"
    )
    assert "the same command goes on" in evaluated.error and (evaluated.folder / "error.log").is_file()
    assert evaluated.left == {"style", "kohya"}
    assert all(f"\n{through}: " in evaluated.first for through in ("style", "kohya", "run: NonFiniteScoreError"))
    assert "\nstyle: " not in evaluated.second and "\nrun: " in evaluated.second
    assert evaluated.second.endswith((evaluated.folder / "evaluation.md").read_text())


def test_an_adapter_whose_images_cannot_be_scored_stops_no_other(folder, tmp_path, monkeypatch):
    class Fleets:
        def draw(self, plan, ticket):
            if ticket is not None and ticket.version < 2:
                raise (NonFiniteScoreError, NonFiniteImageError)[ticket.version]("of the prompt 'a red circle'")

        def dismiss(self):
            pass

    written: list[str] = []
    monkeypatch.setattr(adapter_evaluation, "_start_fleets", lambda _: Fleets())
    monkeypatch.setattr(adapter_evaluation, "compare_drawn", lambda *_: SimpleNamespace(verdict="as before"))
    monkeypatch.setattr(adapter_evaluation, "write_adapter", lambda *given: written.append(given[-1].name))
    with pytest.raises(
        UnscoredAdaptersError, match=r"kohya: NonFiniteImageError: of .*; style: .*; mend the reward, and go on .*/anew"
    ) as end:
        evaluate_adapters(settings_in(folder), tmp_path / "anew", print)
    assert (
        written == ["run"]
        and list(end.value.without_images) == ["kohya"]
        and list(end.value.without_scores) == ["style"]
    )


def test_an_evaluation_begun_before_a_setting_existed_goes_on(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "older")
    written = yaml.safe_load((tmp_path / "older" / "evaluation.yaml").read_text())
    del written["model"]["revision"]
    (tmp_path / "older" / "evaluation.yaml").write_text(yaml.safe_dump(written))
    open_folder(settings_in(folder), tmp_path / "older")
    written["seed"] += 1
    (tmp_path / "older" / "evaluation.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(ValueError, match="holds an evaluation with another seed"):
        open_folder(settings_in(folder), tmp_path / "older")


def test_an_evaluation_that_is_through_needs_no_actor(folder):
    settings = settings_in(folder)
    before = (folder / "style" / "evaluation.json").stat().st_mtime_ns
    lines: list[str] = []
    evaluations = evaluate_adapters(settings, folder, lines.append)
    assert list(evaluations) == ["style", "kohya", "run"] and lines == []
    assert (folder / "style" / "evaluation.json").stat().st_mtime_ns == before


def test_what_was_evaluated_on_other_prompts_is_evaluated_anew(folder):
    weights = {"adapter_sha256": json.loads((folder / "style" / "evaluation.json").read_text())["adapter_sha256"]}
    for prompts, through in ((PROMPTS, True), ([*PROMPTS[:-1], "a green cross"], False)):
        subject = weights | {"prompts_sha256": checksum_of_prompts(prompts)}
        assert is_evaluated(folder, "style", subject) is through
    assert not is_evaluated(folder, "style", {"adapter_sha256": "another"})
    assert not is_evaluated(folder, "nobody", weights)


def test_another_evaluation_does_not_go_into_the_same_folder(folder):
    other = settings_in(folder).model_copy(update={"seed": 9, "images_per_prompt": 4})
    with pytest.raises(ValueError, match="holds an evaluation with another seed, images_per_prompt; give another --ou"):
        evaluate_adapters(other, folder, print)


def test_a_reward_that_miscounts_is_named(folder):
    settings = settings_in(folder)
    miscounts = RewardSettings(name="evaluation_rewards:Miscounts")
    with pytest.raises(RewardError, match=r"reward 'miscounts' returned the shape \(2,\) instead of \(3,\)"):
        RewardModels(settings).evaluate(torch.zeros(3, 4, 8, 8), PROMPTS, [miscounts])


# What is refused before any actor starts


def refusal(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert capsys.readouterr().out == ""
    return str(ended.value)


def test_an_adapter_of_another_architecture_is_refused(adapters, tmp_path, capsys):
    wide = write_pipeline(tmp_path / "wide", width=32)
    given = arguments(adapters, wide, tmp_path / "out", adapters.style, rewards=["jpeg_compressibility"])
    message = refusal(given, capsys)
    assert message.startswith(f"error: adapter 'style' ({adapters.style}) and model '{wide}': it does not fit the unet")
    assert "size mismatch" in message and not (tmp_path / "out").exists()


def test_an_evaluation_by_the_trained_reward_alone_is_refused(adapters, miniature_model, tmp_path, capsys):
    given = arguments(adapters, miniature_model, tmp_path, adapters.own, rewards=["jpeg_compressibility"])
    message = refusal(given, capsys)
    assert "every reward named (jpeg_compressibility) is one that an adapter was trained on" in message


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--adapter", "/nowhere/lora"], "there is no adapter '/nowhere/lora'"),
        (["--prompts", "/nowhere/prompts.txt"], "/nowhere/prompts.txt"),
        (["--rewards", "jpeg"], "unknown reward 'jpeg'; did you mean"),
        (
            ["--rewards", "scene_judge=models/demo-judge", "--prompts", "animals"],
            "not a prompt of the demo world: 'cat'",
        ),
        (["--set", "rollout.batchsize=4"], "unknown setting rollout.batchsize; did you mean"),
        (["--set", "embedder.name=jpeg_compressibility"], "embeds no images; clip, clip_score"),
        (["--set", "model.compile=true"], "evaluate without compile"),
        (["--images-per-prompt", "0"], "images_per_prompt=0"),
        (["--adapter", "style=/other"], "2 adapters are called 'style'"),
    ],
)
def test_an_evaluation_that_cannot_succeed_is_refused(extra, message, adapters, miniature_model, tmp_path, capsys):
    given = arguments(adapters, miniature_model, tmp_path, adapters.style, rewards=["jpeg_compressibility"])
    assert message in refusal([*given, *extra], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_without_the_column_is_refused(adapters, miniature_model, tmp_path, capsys):
    given = arguments(adapters, miniature_model, tmp_path / "out", adapters.style, rewards=["jpeg_compressibility"])
    message = refusal([*given, *in_a_data_set(PROMPTS, tmp_path), "--prompt-column", "prompt"], capsys)
    assert "has no column prompt; its columns are number, caption; set prompts.column" in message
    assert not (tmp_path / "out").exists()


def test_a_dry_run_leaves_open_how_many_prompts_a_data_set_holds(adapters, miniature_model, tmp_path, capsys):
    given = arguments(adapters, miniature_model, tmp_path / "out", adapters.style, rewards=["jpeg_compressibility"])
    main([*given, *in_a_data_set(PROMPTS, tmp_path), "--dry-run"])
    plan = yaml.safe_load(capsys.readouterr().out)
    assert plan["arithmetic"] == {"images_per_prompt_and_model": 2, "network_calls_per_prompt": 2 * 2 * 3}


def test_a_dry_run_prints_the_plan(adapters, miniature_model, tmp_path, capsys):
    rewards = ["jpeg_compressibility", "evaluation_rewards:Halves"]
    main([*arguments(adapters, miniature_model, tmp_path, adapters.style, rewards=rewards), "--dry-run"])
    plan = yaml.safe_load(capsys.readouterr().out)
    assert plan["arithmetic"] == {"images_per_model": 6, "network_calls": 6 * 2 * 3}
    assert plan["sampling"]["num_steps"] == 2 and plan["adapters"] == [{"path": str(adapters.style), "name": None}]
    assert list(tmp_path.iterdir()) == []
