"""The CLIP reward against plain transformers on a tiny random checkpoint written to disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_checkpoints import (
    CONTEXT,
    PROMPTS,
    SIDE,
    assert_gradient_equals_finite_differences,
    natural_images,
    reference_outputs,
    small_clip,
    smooth_images,
    write_clip,
    write_tokenizer,
)
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.pixels import to_pil
from pipeline.rewards.clip import ClipReward
from pipeline.rewards.clip_preprocessing import ClipPreprocessing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_clip(tmp_path_factory.mktemp("clip"), small_clip())


@pytest.fixture(scope="module")
def reward(checkpoint: Path) -> ClipReward:
    return ClipReward.load(str(checkpoint), CPU, torch.float32)


def reference_scores(checkpoint: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """exp(logit_scale) cos as transformers computes it: the diagonal of logits_per_image."""
    return reference_outputs(checkpoint, images, prompts)[1]


def test_without_a_resize_it_equals_transformers(reward: ClipReward, checkpoint: Path) -> None:
    images = smooth_images(3, SIDE, SIDE)
    scores = reward.score(images, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reference_scores(checkpoint, images, PROMPTS), rtol=1e-5, atol=1e-5)


def grey_level_difference(processor: CLIPImageProcessorPil, images: Tensor) -> Tensor:
    """|tensor path - PIL path| of the preprocessed pixels, in units of 1/255: (B, 3, h, w)."""
    preprocessing = ClipPreprocessing.from_processor(processor)
    theirs = processor(to_pil(images), return_tensors="pt").pixel_values
    return (preprocessing(images) - theirs).abs() * torch.tensor(preprocessing.std).view(3, 1, 1) * 255


@pytest.mark.parametrize("size", [(64, 64), (100, 75), (20, 33)])
def test_the_tensor_resize_differs_from_pil_by_its_rounding(
    reward: ClipReward, checkpoint: Path, size: tuple[int, int]
) -> None:
    """PIL rounds to 8 bits after each of its two passes."""
    images = smooth_images(3, *size).mul(0.8 * 255).round() / 255 + 25 / 255
    difference = grey_level_difference(CLIPImageProcessorPil.from_pretrained(checkpoint), images)
    assert difference.max() < 1.2
    assert difference.mean() < 0.4
    scores = reward.score(images, PROMPTS)
    assert (scores - reference_scores(checkpoint, images, PROMPTS)).abs().max() < 0.01


def test_the_tensor_resize_differs_from_pil_at_hard_edges_on_pure_white() -> None:
    """There PIL also clamps the overshoot of the first pass before the second."""
    canvas = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(canvas).ellipse((40, 60, 200, 220), fill="red")
    scene = np.asarray(canvas.resize((64, 64), Image.Resampling.LANCZOS))
    images = torch.from_numpy(scene.copy()).permute(2, 0, 1)[None] / 255
    difference = grey_level_difference(CLIPImageProcessorPil(), images)
    assert difference.max() < 11
    assert difference.mean() < 0.05


@pytest.mark.parametrize("size", [(512, 512), (512, 768), (333, 500)])
def test_the_tensor_resize_of_a_natural_image_stays_close_to_pil(size: tuple[int, int]) -> None:
    """To CLIP's 224 pixels, with much fine detail and an eighth of the pixels pure black or white."""
    difference = grey_level_difference(CLIPImageProcessorPil(), natural_images(2, *size))
    assert difference.max() < 7.1
    assert difference.mean() < 0.33


def test_gradient_equals_finite_differences_in_float64(checkpoint: Path) -> None:
    reward = ClipReward.load(str(checkpoint), CPU, torch.float64)
    images = 0.2 + 0.6 * smooth_images(2, 40, 44)
    assert_gradient_equals_finite_differences(lambda x: reward.logits(x, ["a cat", "a dog"]), images)


def test_gradient_reaches_float32_images_and_leaves_the_model_alone(reward: ClipReward) -> None:
    images = smooth_images(2, 64, 64).requires_grad_()
    scores = reward.score(images, PROMPTS[:2])
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_towers_return_float32_scores(reward: ClipReward, checkpoint: Path, dtype: torch.dtype) -> None:
    half = ClipReward.load(str(checkpoint), CPU, dtype)
    images = smooth_images(2, SIDE, SIDE)
    scores = half.score(images, PROMPTS[:2])
    assert half.model.vision_model.dtype == half.model.text_model.dtype == dtype
    assert torch.equal(half.factor(), reward.factor())  # rounded, it would shift every score by up to 1 %
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reward.score(images, PROMPTS[:2]), rtol=0.05, atol=0.05)


def test_long_text_is_cut_where_the_text_tower_ends(reward: ClipReward) -> None:
    kept = "a" * (CONTEXT - 2)
    cut = reward._embed_text(kept + "c" * 500)
    assert torch.equal(cut, reward._embed_text(kept + "d" * 900))
    assert not torch.equal(cut, reward._embed_text("b" + kept + "c" * 500))


def test_text_embeddings_are_made_once_and_do_not_depend_on_the_batch(checkpoint: Path) -> None:
    reward = ClipReward.load(str(checkpoint), CPU, torch.float32)
    images = smooth_images(3, SIDE, SIDE)
    together = reward.score(images, PROMPTS)
    assert reward._text_embedding.cache_info().misses == 3
    assert torch.equal(reward.score(images, PROMPTS), together)
    assert reward._text_embedding.cache_info().misses == 3
    alone = ClipReward.load(str(checkpoint), CPU, torch.float32)
    for prompt in reversed(PROMPTS):
        assert torch.equal(alone._text_embedding(prompt), reward._text_embedding(prompt))


def test_scores_of_one_image_do_not_move_another(reward: ClipReward) -> None:
    images = smooth_images(2, SIDE, SIDE).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(images, PROMPTS[:2])[0], images)
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()


def test_an_image_of_the_target_size_is_only_normalised() -> None:
    preprocessing = ClipPreprocessing(SIDE, (SIDE, SIDE), (0.5,) * 3, (0.25,) * 3, "bicubic")
    images = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(preprocessing(images), (images - 0.5) / 0.25)


def test_unsupported_preprocessor_settings_are_named() -> None:
    with pytest.raises(ValueError, match="LANCZOS"):
        ClipPreprocessing.from_processor(CLIPImageProcessorPil(resample=1))
    with pytest.raises(ValueError, match="do_normalize"):
        ClipPreprocessing.from_processor(CLIPImageProcessorPil(do_normalize=False))
    with pytest.raises(ValueError, match="larger than the short side 16"):
        ClipPreprocessing.from_processor(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=32))
    with pytest.raises(ValueError, match="unsupported preprocessor sizes"):
        ClipPreprocessing.from_processor(CLIPImageProcessorPil(do_center_crop=False))


def test_a_fixed_size_configuration_resizes_without_a_crop() -> None:
    processor = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    preprocessing = ClipPreprocessing.from_processor(processor)
    assert preprocessing(torch.rand(1, 3, 40, 60)).shape == (1, 3, SIDE, SIDE)


def test_bad_paths_are_refused_before_any_weights(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist: give a checkpoint on this machine or a hub id"):
        ClipReward.check_path(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"needs config.json, which the directory '.*' does not hold"):
        ClipReward.check_path(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="holds a model of type 'bert'"):
        ClipReward.check_path(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no CLIP checkpoint"):
        ClipReward.check_path(str(tmp_path))
    ClipReward.check_path(str(checkpoint))


def test_each_file_that_is_missing_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"needs model.safetensors or .*, which the directory '.*' does not hold"):
        ClipReward.check_path(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"needs tokenizer.json or vocab.json, which the directory"):
        ClipReward.check_path(str(tmp_path))
    write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"needs preprocessor_config.json, which the directory"):
        ClipReward.check_path(str(tmp_path))


def test_all_files_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs config\.json") as caught:
        ClipReward.check_path(str(tmp_path))
    lines = str(caught.value).splitlines()
    assert [line.split(",")[0].removeprefix("reward 'clip' needs ").split(" ")[0] for line in lines] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
    ]
    assert all(line.endswith("; docs/rewards.md says which checkpoint does") for line in lines)


def test_a_tokenizer_that_knows_no_words_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"has no tokenizer: put vocab\.json and merges\.txt"):
        ClipReward.check_path(str(tmp_path))


def test_the_tokenizer_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"one</w>": len(vocabulary)}))
    with pytest.raises(ValueError, match=r"the tokenizer makes 515 tokens, the text tower knows 514"):
        ClipReward.load(str(tmp_path), CPU, torch.float32)


def test_weights_that_are_missing_are_never_made_up(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of its model, among them visual_projection.weight"):
        ClipReward.load(str(tmp_path), CPU, torch.float32)
