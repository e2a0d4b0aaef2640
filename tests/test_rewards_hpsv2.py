"""HPSv2 from the names of open_clip, against plain transformers and PIL."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_checkpoints import (
    PROMPTS,
    SIDE,
    OfflineHub,
    assert_gradient_equals_finite_differences,
    natural_images,
    reference_outputs,
    small_clip,
    smooth_images,
    write_clip,
    write_preprocessor,
    write_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip_names import open_clip_state
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pipeline.pixels import to_pil
from pipeline.rewards import load_reward
from pipeline.rewards.clip_preprocessing import PaddedPreprocessing
from pipeline.rewards.hpsv2 import HPSv2, HPSv21
from pipeline.rewards.open_clip_checkpoint import open_clip_config

CPU = torch.device("cpu")
FILE = "HPS_v2_compressed.pt"


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    """Heads as wide as those of ViT-H/14, and an exp(logit_scale) of 90, which must not show in the score."""
    torch.set_num_threads(1)
    return small_clip(logit_scale=math.log(90), text_width=2 * 64, vision_width=2 * 80, act="gelu")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, model: CLIPModel) -> Path:
    """The same network as a CLIPModel directory."""
    return write_clip(tmp_path_factory.mktemp("converted"), model)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, model: CLIPModel) -> Path:
    """The same network as HPSv2 publishes it, a training checkpoint, with a tokenizer beside it."""
    directory = tmp_path_factory.mktemp("published")
    torch.save({"epoch": 3, "state_dict": open_clip_state(model)}, directory / FILE)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def reward(published: Path) -> HPSv2:
    return HPSv2.load(str(published / FILE), CPU, torch.float32)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OfflineHub:
    return OfflineHub(monkeypatch, tmp_path / "hub")


def test_the_converted_weights_score_as_plain_transformers(reward: HPSv2, converted: Path) -> None:
    images = smooth_images(3, SIDE, SIDE)
    scores = reward.score(images, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, 100 * reference_outputs(converted, images, PROMPTS)[0], rtol=1e-5, atol=2e-5)


def test_every_weight_arrives_where_it_was(reward: HPSv2, model: CLIPModel) -> None:
    expected = model.state_dict()
    found = reward.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_gradient_equals_finite_differences_in_float64(published: Path) -> None:
    reward = HPSv2.load(str(published), CPU, torch.float64)
    images = 0.2 + 0.6 * smooth_images(2, 40, 52)
    assert_gradient_equals_finite_differences(lambda x: reward.logits(x, ["a cat", "a dog"]), images)


def test_a_file_a_directory_the_hub_and_a_converted_model_are_one(
    reward: HPSv2, published: Path, converted: Path, hub: OfflineHub
) -> None:
    hub.add("xswu/HPSv2", published / FILE)
    hub.add("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", *(file for file in published.iterdir() if file.name != FILE))
    hub.add("adams-story/HPSv2-hf", *converted.iterdir())
    images = smooth_images(2, 40, 52)
    expected = reward.score(images, PROMPTS[:2])
    for path in (None, str(published), str(converted), "adams-story/HPSv2-hf"):
        found = load_reward("hpsv2", path, CPU, torch.float32).score(images, PROMPTS[:2])
        # The same weights may lie differently in memory, and matrix products then round differently on some processors.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_files_of_the_versions_are_not_mistaken_for_each_other(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'hpsv2.1' was given .*HPS_v2_compressed.pt', the weights of 'hpsv2'"):
        HPSv21.check_path(str(published / FILE))
    with pytest.raises(ValueError, match=r"needs HPS_v2.1_compressed.pt, which the directory"):
        HPSv21.check_path(str(published))
    for file in published.iterdir():
        (tmp_path / file.name.replace("v2_", "v2.1_")).write_bytes(file.read_bytes())
    HPSv21.check_path(str(tmp_path))
    with pytest.raises(ValueError, match=r"'hpsv2' was given .*, the weights of 'hpsv2.1'"):
        HPSv2.check_path(str(tmp_path / "HPS_v2.1_compressed.pt"))


def test_version_2_1_is_the_same_network_under_its_own_file_name(
    reward: HPSv2, published: Path, tmp_path: Path
) -> None:
    for file in published.iterdir():
        (tmp_path / file.name.replace("v2_", "v2.1_")).write_bytes(file.read_bytes())
    later = load_reward("hpsv2.1", str(tmp_path), CPU, torch.float32)
    images = smooth_images(2, 40, 52)
    torch.testing.assert_close(later.score(images, PROMPTS[:2]), reward.score(images, PROMPTS[:2]), rtol=0, atol=0)
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(later.score(pixels, PROMPTS[:2]).sum(), pixels)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_towers_return_float32_scores(reward: HPSv2, published: Path, dtype: torch.dtype) -> None:
    half = HPSv2.load(str(published), CPU, dtype)
    images = smooth_images(2, 40, 52)
    scores = half.score(images, PROMPTS[:2])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reward.score(images, PROMPTS[:2]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual.proj"), "lacks 1 tensors, among them visual.proj"),
        (lambda state: state.pop("transformer.resblocks.0.ln_1.bias"), "lacks 1 tensors"),
        (lambda state: state.update(extra=torch.ones(1)), "has unknown 1 tensors, among them extra"),
        (lambda state: state.clear(), "lacks 38 tensors"),
    ],
)
def test_other_networks_are_refused(published: Path, tmp_path: Path, change, message: str) -> None:
    write_tokenizer(tmp_path)
    state = torch.load(published / FILE, weights_only=True)["state_dict"]
    change(state)
    torch.save({"state_dict": state}, tmp_path / FILE)
    with pytest.raises(ValueError, match=message):
        HPSv2.load(str(tmp_path), CPU, torch.float32)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    write_tokenizer(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / FILE)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        HPSv2.load(str(tmp_path), CPU, torch.float32)
    assert not (tmp_path / "ran").exists()


def test_the_architecture_is_read_off_the_shapes_of_the_real_file() -> None:
    """ViT-H-14: names and shapes of the published state dict, no memory behind them."""
    shapes = {
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        "token_embedding.weight": (49408, 1024),
        "visual.positional_embedding": (257, 1280),
        "visual.conv1.weight": (1280, 3, 14, 14),
    }
    shapes |= {f"transformer.resblocks.{index}.mlp.c_fc.weight": (4096, 1024) for index in range(24)}
    shapes |= {f"visual.transformer.resblocks.{index}.mlp.c_fc.weight": (5120, 1280) for index in range(32)}
    config = open_clip_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    expected = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    assert expected | {"patch_size": 14, "image_size": 224, "hidden_act": "gelu"} == {
        name: getattr(config.vision_config, name) for name in (*expected, "patch_size", "image_size", "hidden_act")
    }
    expected = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    expected |= {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407, "hidden_act": "gelu"}
    assert expected == {name: getattr(config.text_config, name) for name in expected}
    assert config.projection_dim == 1024


def padded_by_pil(image: Image.Image, side: int) -> Tensor:
    """Longest side to ``side`` with PIL's bicubic, black bars around it: (3, side, side) in 0..255."""
    scale = side / max(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    columns, rows = side - small.width, side - small.height
    square = ImageOps.expand(small, (columns // 2, rows // 2, columns - columns // 2, rows - rows // 2), fill=0)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", [(512, 512), (512, 768), (333, 500), (500, 333), (375, 512), (97, 224)])
def test_images_are_padded_to_a_square_as_pil_would(size: tuple[int, int]) -> None:
    images = natural_images(2, *size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    found = (PaddedPreprocessing(224)(images) * std + mean) * 255
    expected = torch.stack([padded_by_pil(image, 224) for image in to_pil(images)])
    difference = (found - expected).abs()
    assert difference.max() < 7.1
    assert difference.mean() < 0.33


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300))
def test_every_image_becomes_the_square_the_network_takes(height: int, width: int) -> None:
    pixels = PaddedPreprocessing(16)(torch.ones(1, 3, height, width))
    assert pixels.shape == (1, 3, 16, 16)
    black = -torch.tensor(OPENAI_CLIP_MEAN) / torch.tensor(OPENAI_CLIP_STD)
    bars = (pixels[0] == black.view(3, 1, 1)).all(dim=0)
    scale = 16 / max(height, width)
    assert bars.sum() == 16 * 16 - round(height * scale) * round(width * scale), "nothing but the bars is black"


def test_a_preprocessor_configuration_changes_nothing(reward: HPSv2, converted: Path) -> None:
    assert (converted / "preprocessor_config.json").is_file()
    write_preprocessor(converted)
    assert HPSv2.load(str(converted), CPU, torch.float32).preprocessing == reward.preprocessing
