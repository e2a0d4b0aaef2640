"""Settings of an evaluation: what adapters say of themselves fills the gaps, and what contradicts is refused."""

from pathlib import Path
from typing import Any

import pytest
from settings import miniature_settings

from pipeline.evaluation.command_line import settings_from
from pipeline.evaluation.preflight import held_out_rewards
from pipeline.evaluation.settings import AdapterEvaluationSettings, AdapterSettings
from pipeline.training_record import TRAINING_FILE, read_training_record, training_record


def write_record(directory: Path, model: str = "the/base", **sections: Any) -> str:
    directory.mkdir(parents=True)
    record = training_record(miniature_settings(Path(model), **sections))
    (directory / TRAINING_FILE).write_text(record.model_dump_json())
    return str(directory)


def settings_of(
    *adapters: str, rewards: tuple[str, ...] = ("pickscore",), model: str | None = None, overrides: tuple[str, ...] = ()
) -> AdapterEvaluationSettings:
    return settings_from(adapters, "animals", None, rewards, model, 5, overrides)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("runs/demo/adapter", "demo"),
        ("runs/demo/adapter_ema", "demo-ema"),
        ("loras/style.safetensors", "style"),
        ("someone/their-lora", "their-lora"),
        ("adapter", "adapter"),
    ],
)
def test_an_adapter_is_called_by_what_its_path_says(path: str, label: str) -> None:
    assert AdapterSettings(path=path).label == label
    assert AdapterSettings(path=path, name="mine").label == "mine"


def test_model_and_sampling_are_those_of_the_training(tmp_path: Path) -> None:
    settings = settings_of(write_record(tmp_path / "run" / "adapter"), "elsewhere/lora")
    assert settings.model.path == "the/base"
    assert (settings.sampling.num_steps, settings.sampling.guidance_scale) == (4, 2.0)
    assert settings.images_per_prompt == 5 and settings.rewards[0].path is None


def test_what_is_given_comes_first(tmp_path: Path) -> None:
    adapter = write_record(tmp_path / "run" / "adapter")
    settings = settings_of(adapter, model="mine", overrides=("sampling.num_steps=9", "model.dtype=float16", "seed=3"))
    assert (settings.model.path, settings.model.dtype, settings.seed) == ("mine", "float16", 3)
    assert (settings.sampling.num_steps, settings.sampling.guidance_scale) == (9, 2.0)


def test_names_and_paths_are_told_apart() -> None:
    settings = settings_of("first=a/b", "runs/lr=1e-4/adapter", rewards=("clip=x/y", "http=http://h/?a=b"), model="m")
    assert [(adapter.label, adapter.path) for adapter in settings.adapters] == [
        ("first", "a/b"),
        ("lr=1e-4", "runs/lr=1e-4/adapter"),
    ]
    assert [(reward.name, reward.path) for reward in settings.rewards] == [("clip", "x/y"), ("http", "http://h/?a=b")]


def test_adapters_of_different_models_or_sampling_need_a_choice(tmp_path: Path) -> None:
    first = write_record(tmp_path / "first" / "adapter")
    other = write_record(tmp_path / "other" / "adapter", model="another", sampling={"num_steps": 6})
    with pytest.raises(ValueError, match=r"different models \(another, the/base\); choose one by --model"):
        settings_of(first, other)
    with pytest.raises(ValueError, match=r"different sampling \(num_steps\).*sampling.num_steps=4"):
        settings_of(first, other, model="another")
    assert settings_of(first, other, model="another", overrides=("sampling.num_steps=6",)).sampling.num_steps == 6


def test_a_foreign_adapter_alone_needs_a_model() -> None:
    with pytest.raises(ValueError, match="no adapter says which model it belongs to; give the base model by --model"):
        settings_of("elsewhere/lora")


@pytest.mark.parametrize(
    ("adapters", "rewards", "message"),
    [
        (("a/x", "b/x"), ("clip",), "2 adapters are called 'x'"),
        ((".hidden=a",), ("clip",), "cannot be called '.hidden'"),
        (("a",), ("clip=p", "clip=p"), "reward 'clip' with path 'p' is listed twice"),
    ],
)
def test_settings_that_contradict_are_refused(
    adapters: tuple[str, ...], rewards: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(*adapters, rewards=rewards, model="m")


def test_held_out_is_what_no_adapter_was_trained_on(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    clip = f"clip={tmp_path / 'clip'}"
    reward = {"name": "clip", "path": str(tmp_path / "x" / ".." / "clip")}
    (tmp_path / "x").mkdir()
    on_clip = write_record(tmp_path / "first" / "adapter", reward=reward)
    on_jpeg = write_record(tmp_path / "second" / "adapter")
    rewards = (clip, "clip=another/clip", "jpeg_compressibility", "jpeg_incompressibility")
    labels = held_out_rewards(settings_of(on_clip, on_jpeg, "elsewhere/lora", rewards=rewards))
    assert labels == ["clip (another/clip)", "jpeg_incompressibility"]
    assert held_out_rewards(settings_of(on_clip, rewards=("jpeg_compressibility", clip))) == ["jpeg_compressibility"]


def test_the_published_weights_are_the_same_whether_they_are_named_or_not(tmp_path: Path) -> None:
    adapter = write_record(tmp_path / "run" / "adapter", reward={"name": "pickscore"})
    named = ("pickscore=yuvalkirstain/PickScore_v1", "jpeg_compressibility")
    assert held_out_rewards(settings_of(adapter, rewards=named)) == ["jpeg_compressibility"]


def test_a_table_of_prompts_without_its_column_names_the_option() -> None:
    with pytest.raises(ValueError, match="name the column that holds the prompts by --prompt-column"):
        settings_from(["a/b"], "prompts.csv", None, ["clip"], "m", 5, [])


def test_a_malformed_record_is_named(tmp_path: Path) -> None:
    (tmp_path / TRAINING_FILE).write_text('{"run": 3}')
    with pytest.raises(ValueError, match=f"{TRAINING_FILE} is no training record"):
        read_training_record(str(tmp_path))
