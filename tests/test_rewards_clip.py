"""The CLIP reward against plain transformers on a tiny random checkpoint written to disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.images import to_pil
from pipeline.rewards.clip import ClipReward
from pipeline.rewards.clip_preprocessing import ClipPreprocessing

CPU = torch.device("cpu")
SIDE = 32
CONTEXT = 12
PROMPTS = ["a small red circle", "eine Straße, 猫 🦊", ""]


def write_tokenizer(directory: Path) -> None:
    """A byte-level vocabulary without merges: every text can be encoded."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clip")
    write_tokenizer(directory)
    end = len(ByteLevel.alphabet()) * 2 + 1
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": end + 1, "max_position_embeddings": CONTEXT, "bos_token_id": end - 1, "eos_token_id": end}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tower, **text, "pad_token_id": end},
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def reward(checkpoint: Path) -> ClipReward:
    return ClipReward.load(str(checkpoint), CPU, torch.float32)


def smooth_images(batch: int, height: int, width: int) -> Tensor:
    """Pictures with the smoothness of real ones and full contrast, quantised to 8 bits: (B, 3, H, W)."""
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").mul(1.6).sub(0.3).clamp(0, 1)
    return images.mul(255).round() / 255


def reference_scores(checkpoint: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """exp(logit_scale) cos as transformers computes it: the diagonal of logits_per_image."""
    model = CLIPModel.from_pretrained(checkpoint).eval()
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
    pixels = CLIPImageProcessorPil.from_pretrained(checkpoint)(to_pil(images), return_tensors="pt")
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, **pixels).logits_per_image.diagonal()


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


def test_gradient_equals_finite_differences_in_float64(checkpoint: Path) -> None:
    reward = ClipReward.load(str(checkpoint), CPU, torch.float64)
    prompts = ["a cat", "a dog"]
    images = (0.2 + 0.6 * smooth_images(2, 40, 44)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(reward.logits(images, prompts).sum(), images)
    directions = torch.randn(3, *images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for direction in directions:
        step = 1e-5 * direction
        with torch.no_grad():
            rise = reward.logits(images + step, prompts) - reward.logits(images - step, prompts)
        expected = rise.sum() / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-8)
    assert gradient.abs().max() > 0


def test_gradient_reaches_float32_images_and_leaves_the_model_alone(reward: ClipReward) -> None:
    images = smooth_images(2, 64, 64).requires_grad_()
    scores = reward.score(images, PROMPTS[:2])
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.model.parameters())


def test_half_precision_towers_return_float32_scores(reward: ClipReward, checkpoint: Path) -> None:
    half = ClipReward.load(str(checkpoint), CPU, torch.bfloat16)
    images = smooth_images(2, SIDE, SIDE)
    scores = half.score(images, PROMPTS[:2])
    assert half.model.dtype == torch.bfloat16
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
    with pytest.raises(ValueError, match="does not exist: give the directory of a CLIP checkpoint or a hub id"):
        ClipReward.check_path(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="neither the directory of a CLIP checkpoint"):
        ClipReward.check_path(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="holds a model of type 'bert'"):
        ClipReward.check_path(str(tmp_path))
    ClipReward.check_path(str(checkpoint))


def test_a_checkpoint_without_its_preprocessor_or_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(ValueError, match=r"has no tokenizer: put vocab\.json and merges\.txt"):
        ClipReward.load(str(tmp_path), CPU, torch.float32)
    write_tokenizer(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config.json: put the one of the CLIP model"):
        ClipReward.load(str(tmp_path), CPU, torch.float32)
