"""The aesthetic predictor: its layers folded into one, and the reward against plain transformers and plain layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from aesthetic_head import published_head
from clip_checkpoints import (
    EMBEDDING,
    SIDE,
    OfflineHub,
    assert_gradient_equals_finite_differences,
    small_clip,
    smooth_images,
    write_clip,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.pixels import to_pil
from pipeline.rewards import load_reward
from pipeline.rewards.aesthetic import Aesthetic
from pipeline.rewards.affine_head import AffineHead

CPU = torch.device("cpu")
SMALL = (EMBEDDING, 16, 8, 4, 2, 1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_clip(tmp_path_factory.mktemp("clip"), small_clip())


@pytest.fixture(scope="module")
def checkpoint(clip: Path) -> Path:
    """A directory that holds the head beside the CLIP it reads."""
    torch.save(published_head(SMALL).state_dict(), clip / "sac+logos+ava1-l14-linearMSE.pth")
    return clip


@pytest.fixture(scope="module")
def reward(checkpoint: Path) -> Aesthetic:
    return Aesthetic.load(str(checkpoint), CPU, torch.float32)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OfflineHub:
    return OfflineHub(monkeypatch, tmp_path / "hub")


def reference_scores(checkpoint: Path, images: Tensor) -> Tensor:
    """The layered head on the unit embeddings of the whole CLIPModel."""
    pixels = CLIPImageProcessorPil.from_pretrained(checkpoint)(to_pil(images), return_tensors="pt").pixel_values
    with torch.no_grad():
        features = CLIPModel.from_pretrained(checkpoint).eval().get_image_features(pixel_values=pixels).pooler_output
        return published_head(SMALL)(features / features.norm(dim=-1, keepdim=True))


def test_the_folded_head_equals_the_layers_at_the_published_size() -> None:
    head = published_head((768, 1024, 128, 64, 16, 1)).double()
    names = {f"layers.{number}.{kind}" for number in (0, 2, 4, 6, 7) for kind in ("weight", "bias")}
    assert head.state_dict().keys() == names
    features = torch.randn(64, 768, dtype=torch.float64)
    folded = AffineHead.fold(head.state_dict())
    assert folded.weight.shape == (768,)
    torch.testing.assert_close(folded(features), head(features), rtol=1e-12, atol=1e-12)


def test_it_equals_transformers_and_the_layers(reward: Aesthetic, checkpoint: Path) -> None:
    images = smooth_images(3, SIDE, SIDE)
    scores = reward.score(images, ["a", "b", "c"])
    assert scores.dtype == torch.float32
    assert scores.std() > 1e-4, "scores that are all alike show nothing"
    torch.testing.assert_close(scores, reference_scores(checkpoint, images), rtol=1e-5, atol=1e-5)
    assert torch.equal(scores, reward.score(images, ["x", "y", "z"])), "the prompt is not read"


def test_gradient_equals_finite_differences_in_float64(checkpoint: Path) -> None:
    reward = Aesthetic.load(str(checkpoint), CPU, torch.float64)
    assert_gradient_equals_finite_differences(reward.ratings, 0.2 + 0.6 * smooth_images(2, 40, 44))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_tower_returns_float32_scores(reward: Aesthetic, checkpoint: Path, dtype: torch.dtype) -> None:
    half = Aesthetic.load(str(checkpoint), CPU, dtype)
    images = smooth_images(2, SIDE, SIDE)
    scores = half.score(images, ["", ""])
    assert half.projection.weight.dtype == dtype
    assert half.head.weight.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(scores, reward.score(images, ["", ""]), rtol=0.05, atol=0.05)


def test_the_head_may_be_a_file_of_either_kind_or_lie_on_the_hub(
    reward: Aesthetic, checkpoint: Path, hub: OfflineHub, tmp_path: Path
) -> None:
    images = smooth_images(2, SIDE, SIDE)
    expected = reward.score(images, ["", ""])
    hub.add(
        "openai/clip-vit-large-patch14",
        *(file for file in checkpoint.iterdir() if file.suffix in (".json", ".safetensors")),
    )
    state = published_head(SMALL).state_dict()
    torch.save(state, tmp_path / "aesthetic-model.pth")
    save_file(state, tmp_path / "model.safetensors")
    hub.add("trl-lib/ddpo-aesthetic-predictor", tmp_path / "aesthetic-model.pth")
    hub.add("ttj/sac-logos-ava1-l14-linearMSE", tmp_path / "model.safetensors")
    beside_its_clip = checkpoint / "sac+logos+ava1-l14-linearMSE.pth"
    for path in (None, tmp_path / "model.safetensors", tmp_path, beside_its_clip, "ttj/sac-logos-ava1-l14-linearMSE"):
        found = load_reward("aesthetic", path and str(path), CPU, torch.float32)
        assert torch.equal(found.score(images, ["", ""]), expected), path


def test_a_clip_without_a_head_beside_it_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        if file.suffix != ".pth":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"needs aesthetic-model.pth or .*, which the directory '.*' does not hold"):
        Aesthetic.check_path(str(tmp_path))


def test_a_head_for_another_clip_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(published_head((12, *SMALL[1:])).state_dict(), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    with pytest.raises(ValueError, match="the aesthetic head reads 12 features, its CLIP makes 8"):
        Aesthetic.load(str(tmp_path), CPU, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layers.4.bias"), "expected layers.N.weight and layers.N.bias alone"),
        (
            lambda state: state.update({"layers.1.gain": torch.ones(1)}),
            "expected layers.N.weight and layers.N.bias alone",
        ),
        (lambda state: state.clear(), "expected layers.N.weight and layers.N.bias alone"),
        (lambda state: [state.pop(f"layers.2.{kind}") for kind in ("weight", "bias")], "do not make one number"),
        (lambda state: [state.pop(f"layers.7.{kind}") for kind in ("weight", "bias")], "do not make one number"),
    ],
)
def test_layers_that_are_no_such_head_are_refused(change, message: str) -> None:
    state = published_head(SMALL).state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        AffineHead.fold(state)


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_a_file_of_something_else_is_refused_by_its_name(checkpoint: Path, content: bytes) -> None:
    for name in ("damaged.pth", "damaged.safetensors"):
        (checkpoint / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}' is no aesthetic head: .* cannot be read as weights"):
            Aesthetic.load(str(checkpoint / name), CPU, torch.float32)
        (checkpoint / name).unlink()
    torch.save([torch.ones(2)], checkpoint / "list.pth")
    with pytest.raises(ValueError, match="holds no tensors by name, but a list"):
        Aesthetic.load(str(checkpoint / "list.pth"), CPU, torch.float32)
    (checkpoint / "list.pth").unlink()
