"""CLIPScore and PickScore: the CLIP reward with their own checkpoints, against plain transformers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from clip_checkpoints import (
    PROMPTS,
    SIDE,
    OfflineHub,
    assert_gradient_equals_finite_differences,
    reference_outputs,
    small_clip,
    smooth_images,
    write_clip,
)
from transformers import CLIPConfig, CLIPModel

from pipeline.rewards import REWARDS, load_reward, reward_class
from pipeline.rewards.clip import ClipReward
from pipeline.rewards.clip_score import ClipScore
from pipeline.rewards.pickscore import PickScore

CPU = torch.device("cpu")
WITH_DEFAULT = [name for name in REWARDS if reward_class(name).default_path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its exp(logit_scale) is 90, so that no score can pass for 100 cos that is not."""
    torch.set_num_threads(1)
    return write_clip(tmp_path_factory.mktemp("clip"), small_clip(logit_scale=math.log(90)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OfflineHub:
    return OfflineHub(monkeypatch, tmp_path / "hub")


def test_clip_score_is_a_hundred_times_the_cosine(checkpoint: Path) -> None:
    images = smooth_images(3, SIDE, SIDE)
    cosines, logits = reference_outputs(checkpoint, images, PROMPTS)
    scores = ClipScore.load(str(checkpoint), CPU, torch.float32).score(images, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, 100 * cosines, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores, logits)


def test_pickscore_is_the_logit_of_its_checkpoint(checkpoint: Path) -> None:
    images = smooth_images(3, SIDE, SIDE)
    scores = PickScore.load(str(checkpoint), CPU, torch.float32).score(images, PROMPTS)
    torch.testing.assert_close(scores, reference_outputs(checkpoint, images, PROMPTS)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [ClipScore, PickScore])
def test_gradient_equals_finite_differences_in_float64(kind: type[ClipReward], checkpoint: Path) -> None:
    reward = kind.load(str(checkpoint), CPU, torch.float64)
    images = 0.2 + 0.6 * smooth_images(2, 44, 40)
    assert_gradient_equals_finite_differences(lambda x: reward.logits(x, ["a cat", "a dog"]), images)


def test_without_a_path_the_hub_id_of_the_reward_is_loaded(checkpoint: Path, hub: OfflineHub) -> None:
    hub.add("openai/clip-vit-large-patch14", *checkpoint.iterdir())
    images = smooth_images(2, SIDE, SIDE)
    found, given = (load_reward("clip_score", path, CPU, torch.float32) for path in (None, str(checkpoint)))
    assert torch.equal(found.score(images, PROMPTS[:2]), given.score(images, PROMPTS[:2]))


def test_pickscore_takes_tokenizer_and_preprocessing_from_the_clip_it_started_from(
    checkpoint: Path, hub: OfflineHub
) -> None:
    processor = [file for file in checkpoint.iterdir() if file.name not in ("config.json", "model.safetensors")]
    hub.add("yuvalkirstain/PickScore_v1", checkpoint / "config.json", checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=r"needs tokenizer.json or vocab.json of 'laion/CLIP-ViT-H-14-laion2B"):
        PickScore.check_path(None)
    hub.add("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", *processor)
    images = smooth_images(2, SIDE, SIDE)
    found, given = (load_reward("pickscore", path, CPU, torch.float32) for path in (None, str(checkpoint)))
    assert torch.equal(found.score(images, PROMPTS[:2]), given.score(images, PROMPTS[:2]))


@pytest.mark.parametrize("name", WITH_DEFAULT)
@pytest.mark.usefixtures("hub")
def test_weights_that_cannot_be_had_are_named_with_the_way_to_get_them(name: str) -> None:
    found = reward_class(name)
    with pytest.raises(ValueError, match="cannot be had from the hub now") as caught:
        found.check_path(None)
    message = str(caught.value)
    assert f"reward {name!r} needs " in message
    assert f"`hf download {found.default_path} " in message
    assert "reward.path" in message


@pytest.mark.parametrize("kind", [ClipReward, ClipScore, PickScore])
def test_a_file_of_weights_stands_for_its_directory(kind: type[ClipReward], checkpoint: Path, tmp_path: Path) -> None:
    images = smooth_images(2, SIDE, SIDE)
    file, directory = (
        kind.load(str(path), CPU, torch.float32) for path in (checkpoint / "model.safetensors", checkpoint)
    )
    assert torch.equal(file.score(images, PROMPTS[:2]), directory.score(images, PROMPTS[:2]))
    (tmp_path / "mine.safetensors").touch()
    with pytest.raises(ValueError, match=r"mine.safetensors' is a file, .* call it one of model.safetensors, "):
        kind.check_path(str(tmp_path / "mine.safetensors"))
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"transformers loads model.safetensors instead: move one of them"):
        kind.check_path(str(tmp_path / "pytorch_model.bin"))


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        (
            "clip_score",
            [f"openai/clip-vit-large-patch14 {name}" for name in ("config.json", "model.safetensors", "tokenizer.json")]
            + ["openai/clip-vit-large-patch14 preprocessor_config.json"],
        ),
        ("pickscore", [f"yuvalkirstain/PickScore_v1 {name}" for name in ("config.json", "model.safetensors")]),
        ("hpsv2", ["xswu/HPSv2 HPS_v2_compressed.pt"]),
        ("hpsv2.1", ["xswu/HPSv2 HPS_v2.1_compressed.pt"]),
        ("aesthetic", ["trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth"]),
        ("image_reward", [f"THUDM/ImageReward {name}" for name in ("ImageReward.pt", "med_config.json")]),
        (
            "spo_step_aware",
            ["SPO-Diffusion-Models/Step-Aware_Preference_Models sd-v1-5_step-aware_preference_model.bin"],
        ),
    ],
)
@pytest.mark.usefixtures("hub")
def test_a_directory_that_lacks_files_is_told_how_to_fetch_each(name: str, commands: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "empty"
    directory.mkdir()
    with pytest.raises(ValueError, match=r"which the directory '.*' does not hold: fetch it by") as caught:
        reward_class(name).check_path(str(directory))
    lines = [line for line in str(caught.value).splitlines() if "does not hold" in line]
    assert len(lines) == len(commands)
    for line, command in zip(lines, commands, strict=True):
        assert line.endswith(f"fetch it by `hf download {command} --local-dir {directory}`")


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("clip_score", {"vision": (1024, 24), "text": (768, 12), "projection": 768}),
        ("pickscore", {"vision": (1280, 32), "text": (1024, 24), "projection": 1024}),
        ("hpsv2", {"vision": (1280, 32), "text": (1024, 24), "projection": 1024}),
        ("hpsv2.1", {"vision": (1280, 32), "text": (1024, 24), "projection": 1024}),
        ("aesthetic", {"vision": (1024, 24), "text": None, "projection": 768}),
    ],
)
def test_the_declared_memory_is_that_of_the_architecture(name: str, tower: dict) -> None:
    def config(shape: tuple[int, int] | None) -> dict[str, int]:
        width, layers = shape or (64, 1)
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        return {**sizes, "num_attention_heads": 16, "patch_size": 14}

    sizes = CLIPConfig(
        vision_config=config(tower["vision"]),
        text_config=config(tower["text"]),
        projection_dim=tower["projection"],
    )
    with torch.device("meta"):
        model = CLIPModel(sizes)
    parts = [model] if tower["text"] else [model.vision_model, model.visual_projection]
    parameters = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert reward_class(name).weights_mebibytes == round(parameters * 2 / 2**20)
