"""Everything that can be seen to be wrong before the first actor starts."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from preference_files import pair, write_pairs
from settings import miniature_settings

from pipeline.config import ModelSettings, RunSettings
from pipeline.preflight import check_model, check_rewards, check_run
from pipeline.prompt_sets import PromptSets
from pipeline.rewards import reward_scale
from pipeline.rewards.clip import ClipReward

pytest_plugins = ["model_fixtures"]


JPEGS = [{"name": "jpeg_compressibility"}, {"name": "jpeg_incompressibility", "weight": -1.0}]


@pytest.fixture
def copied(miniature_model: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(miniature_model, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_prompts(model: Path, directory: Path, text: str) -> RunSettings:
    path = directory / "prompts.txt"
    path.write_text(text, encoding="utf-8")
    return miniature_settings(model, prompts={"train": str(path)})


def test_a_sound_run_passes(miniature_model: Path, miniature_clip: Path) -> None:
    assert check_run(miniature_settings(miniature_model)) == 0
    guided = miniature_settings(
        miniature_model,
        method={"guidance": {}},
        reward={"name": "clip", "path": str(miniature_clip)},
        evaluation={"rewards": [{"name": "jpeg_compressibility"}]},
    )
    assert check_run(guided) == 0


def test_several_rewards_are_guided_by_those_that_can(miniature_model: Path, miniature_clip: Path) -> None:
    rewards = [{"name": "jpeg_compressibility"}, {"name": "clip", "path": str(miniature_clip)}]
    assert check_run(miniature_settings(miniature_model, method={"guidance": {}}, reward=rewards)) == 0


def test_no_weights_are_loaded(copied: Path) -> None:
    for weights in copied.rglob("*.safetensors"):
        weights.write_bytes(b"no weights at all")
    assert check_run(miniature_settings(copied)) == 0


def test_a_missing_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.path '.*/nowhere' does not exist"):
        check_model(ModelSettings(path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("relative", [False, True])
def test_a_checkpoint_of_one_file_is_refused_with_the_way_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    path = file.name if relative else str(file)
    with pytest.raises(ValueError, match=r"is a single file.*from_single_file\(.*mine.safetensors'\).save_pretrained"):
        check_model(ModelSettings(path=path))


def test_a_directory_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no diffusers pipeline: it has no model_index.json"):
        check_model(ModelSettings(path=str(tmp_path)))


def test_a_broken_index_is_refused(copied: Path) -> None:
    (copied / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model.path .* is neither a directory nor a hub id|is no diffusers pipeline"):
        check_model(ModelSettings(path=str(copied)))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_pipeline_without_a_component_is_refused(copied: Path, component: str) -> None:
    edit(copied / "model_index.json", **{component: [None, None]})
    with pytest.raises(ValueError, match=rf"holds a StableDiffusionPipeline without {component}; "):
        check_model(ModelSettings(path=str(copied)))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_component_whose_folder_is_missing_is_refused(copied: Path, component: str) -> None:
    shutil.rmtree(copied / component)
    with pytest.raises(ValueError, match=rf"lacks the folder {component}/"):
        check_model(ModelSettings(path=str(copied)))


def test_a_pipeline_of_another_family_is_refused(copied: Path) -> None:
    edit(copied / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ValueError, match=r"holds a StableDiffusionXLPipeline; a StableDiffusionPipeline is needed"):
        check_model(ModelSettings(path=str(copied)))


def test_a_clipping_scheduler_is_refused(copied: Path) -> None:
    edit(copied / "scheduler" / "scheduler_config.json", thresholding=True)
    with pytest.raises(ValueError, match="the scheduler clips its x0 prediction"):
        check_run(miniature_settings(copied))


def test_a_run_that_is_taken_up_needs_no_source_of_its_prompts(miniature_model: Path, tmp_path: Path) -> None:
    settings = miniature_settings(miniature_model, prompts={"train": str(tmp_path / "gone.txt"), "held_out": "demo"})
    with pytest.raises(ValueError, match="there is no prompt file"):
        check_run(settings)
    assert check_run(settings, PromptSets(["a fox"], ["a red circle"])) == 0


def test_more_steps_than_the_schedule_has_are_refused(miniature_model: Path) -> None:
    settings = miniature_settings(miniature_model, sampling={"num_steps": 1001})
    with pytest.raises(ValueError, match="1001"):
        check_run(settings)


def test_layers_that_do_not_exist_are_refused(miniature_model: Path) -> None:
    settings = miniature_settings(miniature_model, lora={"target_modules": ["to_q", "to_nothing"]})
    with pytest.raises(ValueError, match=r"lora.target_modules names to_nothing, which no layer of the UNet"):
        check_run(settings)


def test_a_block_without_any_of_the_target_modules_is_refused(miniature_model: Path) -> None:
    settings = miniature_settings(miniature_model, lora={"blocks": ["mid_block", "down_blocks.1"]})
    with pytest.raises(ValueError, match=r"lora.blocks names down_blocks.1, in which the UNet .* has none of"):
        check_run(settings)


@pytest.mark.parametrize("network", ["unet", "vae", "text_encoder"])
def test_networks_without_weights_are_refused(network: str, miniature_model: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(miniature_model, tmp_path / "model")
    (weights,) = (copied / network).glob("*.safetensors")
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    with pytest.raises(ValueError, match=rf"has no weights in {network}/, which holds .*fp16.safetensors"):
        check_run(miniature_settings(copied))


def test_blocks_that_do_not_exist_are_refused(miniature_model: Path) -> None:
    settings = miniature_settings(miniature_model, lora={"blocks": ["mid_block", "up_blocks.7"]})
    with pytest.raises(ValueError, match=r"lora.blocks names up_blocks.7, in .*; they are in down_blocks.0, mid_block"):
        check_run(settings)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"reward": {"name": "jpg_compressibility"}}, r"unknown reward 'jpg_compressibility'; did you mean 'jpeg_comp"),
        ({"reward": {"name": "clip"}}, r"reward 'clip' needs reward.path"),
        ({"reward": {"path": "somewhere"}}, r"'jpeg_compressibility' has no weights: remove reward.path"),
        ({"method": {"guidance": {}}}, r"guidance needs a differentiable reward, and 'jpeg_compressibility' is not"),
        (
            {"reward": JPEGS, "method": {"guidance": {}}},
            r"guidance needs a differentiable reward, and 'jpeg_compressibility', 'jpeg_incompressibility' are not",
        ),
        ({"reward": [*JPEGS, {"name": "clip"}]}, r"reward 'clip' needs reward.path"),
        ({"reward": [*JPEGS, {"name": "scene_judge"}]}, r"'scene_judge' is the held-out judge and must not be trained"),
        ({"evaluation": {"rewards": [{"name": "nothing"}]}}, r"unknown reward 'nothing'"),
        ({"evaluation": {"rewards": [{"name": "clip"}]}}, r"reward 'clip' needs reward.path"),
    ],
)
def test_a_reward_that_cannot_do_what_it_should_is_refused(
    miniature_model: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_run(miniature_settings(miniature_model, **sections))


def test_every_fault_of_every_reward_is_named_once(miniature_model: Path, tmp_path: Path) -> None:
    clip = {"name": "clip", "path": str(tmp_path)}
    settings = miniature_settings(
        miniature_model,
        reward=[*JPEGS, {"name": "scene_judge", "path": str(tmp_path)}, clip],
        evaluation={"rewards": [clip, {"name": "nothing"}]},
    )
    with pytest.raises(ValueError, match="'scene_judge' is the held-out judge") as caught:
        check_rewards(settings)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("no scene judge in ")
    files = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
    assert all(line.startswith(f"reward 'clip' needs {name}") for line, name in zip(lines[2:6], files, strict=True))
    assert lines[6].startswith("unknown reward 'nothing'")
    assert len(lines) == 7


def test_a_judge_is_not_trained_on(
    miniature_model: Path, miniature_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipReward, "held_out_only", True)
    clip = {"name": "clip", "path": str(miniature_clip)}
    with pytest.raises(ValueError, match=r"'clip' is the held-out judge and must not be trained on; put it under eval"):
        check_rewards(miniature_settings(miniature_model, reward=clip))
    check_rewards(miniature_settings(miniature_model, evaluation={"rewards": [clip]}))


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("\n\n", "is empty")])
def test_an_empty_prompt_file_is_refused(miniature_model: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_run(with_prompts(miniature_model, tmp_path, text))


def test_a_missing_prompt_file_is_refused(miniature_model: Path) -> None:
    for place in ("train", "held_out"):
        with pytest.raises(ValueError, match="there is no prompt file animal;"):
            check_run(miniature_settings(miniature_model, prompts={place: "animal"}))


def test_long_prompts_are_counted_and_warned_of(
    miniature_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long, longer = "a red circle " * 40, "🦊" * 200
    settings = with_prompts(miniature_model, tmp_path, f"a fox\n{long}\n猫\n{longer}\n")
    with caplog.at_level(logging.WARNING, "pipeline.preflight"):
        assert check_run(settings) == 2
    warnings = [record.message for record in caplog.records if record.name == "pipeline.preflight"]
    assert len(warnings) == 1
    assert warnings[0].startswith("2 of ")
    assert repr(long.strip()) in warnings[0]


@pytest.mark.parametrize(
    ("images", "held_out", "warned"),
    [(4, [], True), (4, ["jpeg_compressibility"], True), (4, ["jpeg_incompressibility"], False), (0, [], False)],
)
def test_an_evaluation_by_nothing_but_the_trained_reward_is_warned_of(
    miniature_model: Path, caplog: pytest.LogCaptureFixture, images: int, held_out: list[str], warned: bool
) -> None:
    evaluation = {"images": images, "rewards": [{"name": name} for name in held_out]}
    with caplog.at_level(logging.WARNING, "pipeline.preflight"):
        check_run(miniature_settings(miniature_model, evaluation=evaluation))
    assert any("no reward but what is trained on" in record.message for record in caplog.records) == warned


def test_a_run_whose_prompts_all_lie_in_a_data_set_passes(miniature_model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("caption\na fox\na cat\n")
    source = {"path": str(tmp_path / "prompts.csv"), "column": "caption"}
    assert check_run(miniature_settings(miniature_model, prompts={"train": source})) == 0


def test_the_reward_scale_is_the_configured_or_the_declared_one(miniature_model: Path) -> None:
    declared = miniature_settings(miniature_model).reward
    configured = miniature_settings(miniature_model, reward={"scale": 7.5}).reward
    assert reward_scale(configured) == 7.5
    assert reward_scale(declared) > 0
    assert reward_scale(declared) != 7.5


def test_data_sets_are_looked_at_before_ray_starts(miniature_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\na fox,1\n")
    prompts = {"train": {"path": str(tmp_path / "a.csv"), "column": "text"}, "held_out": "animals"}
    assert check_run(miniature_settings(miniature_model, prompts=prompts)) == 0
    assert check_run(miniature_settings(miniature_model, prompts=prompts | {"held_out": None})) == 0
    prompts["train"] = {"path": str(tmp_path / "a.csv")}
    with pytest.raises(ValueError, match=r"has no column prompt; its columns are text, n; set prompts.train.column"):
        check_run(miniature_settings(miniature_model, prompts=prompts))
    offline = {"name": "diffusion_dpo", "data": str(write_pairs(tmp_path / "a.parquet", [pair(1)]))}
    rollout = {"trajectories": 16, "batch_size": 4}
    assert check_run(miniature_settings(miniature_model, method=offline, rollout=rollout)) == 0
    offline["data"] = str(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="holds CSV files; pairs of images are read as Parquet"):
        check_run(miniature_settings(miniature_model, method=offline, rollout=rollout))
