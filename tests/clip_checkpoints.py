"""Small random checkpoints of the CLIP family, pictures to score, and a hub to find checkpoints in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.pixels import to_pil

SIDE = 32
CONTEXT = 12
EMBEDDING = 8
PROMPTS = ["a small red circle", "eine Straße, 猫 🦊", ""]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_tokenizer(directory: Path) -> None:
    """A byte-level vocabulary without merges: every text can be encoded."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))


def write_preprocessor(directory: Path) -> None:
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(directory)


def small_clip(
    logit_scale: float = 2.6592, text_width: int = 16, vision_width: int = 16, act: str = "quick_gelu"
) -> CLIPModel:
    """Two layers of two heads in each tower, every weight random, biases and norms too."""
    end = len(ByteLevel.alphabet()) * 2 + 1
    tower = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act}
    text = {"vocab_size": end + 1, "max_position_embeddings": CONTEXT, "bos_token_id": end - 1, "eos_token_id": end}
    config = CLIPConfig(
        text_config={**tower, **text, "hidden_size": text_width, "pad_token_id": end},
        vision_config={**tower, "hidden_size": vision_width, "image_size": SIDE, "patch_size": 8},
        projection_dim=EMBEDDING,
        logit_scale_init_value=logit_scale,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "class_embedding" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write_clip(directory: Path, model: CLIPModel) -> Path:
    """A whole checkpoint: model, tokenizer, preprocessing."""
    write_tokenizer(directory)
    model.save_pretrained(directory)
    write_preprocessor(directory)
    return directory


def smooth_images(batch: int, height: int, width: int) -> Tensor:
    """Pictures with the smoothness of real ones and full contrast, quantised to 8 bits: (B, 3, H, W)."""
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").mul(1.6).sub(0.3).clamp(0, 1)
    return images.mul(255).round() / 255


def natural_images(batch: int, height: int, width: int) -> Tensor:
    """Noise with the 1/f amplitude spectrum of photographs, an eighth of it clipped, in 8 bits: (B, 3, H, W)."""
    white = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    frequency[0, 0] = torch.inf
    pink = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    images = 0.5 + pink / pink.std(dim=(-2, -1), keepdim=True) / 3
    return images.clamp(0, 1).mul(255).round() / 255


def reference_outputs(checkpoint: Path, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Cosines and logits of image i with prompt i, as plain transformers computes both: (B,), (B,)."""
    model = CLIPModel.from_pretrained(checkpoint).eval()
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
    pixels = CLIPImageProcessorPil.from_pretrained(checkpoint)(to_pil(images), return_tensors="pt")
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, **pixels)
    return (output.image_embeds * output.text_embeds).sum(dim=-1), output.logits_per_image.diagonal()


class OfflineHub:
    """The cache of a hub that cannot be reached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        self.cache = cache

    def add(self, repository: str, *files: Path, commit: str = COMMIT) -> None:
        """Put ``files``, or folders of them, where `hf download` puts those of ``repository``, as its newest commit."""
        folder = self.cache / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        for file in files:
            (shutil.copytree if file.is_dir() else shutil.copy)(file, snapshot / file.name)


def assert_gradient_equals_finite_differences(function, images: Tensor) -> None:
    """Along three random directions, for a ``function`` of float64 ``images`` that returns (B,)."""
    images = images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(function(images).sum(), images)
    assert gradient.abs().max() > 0
    for direction in torch.randn(3, *images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)):
        step = 1e-5 * direction
        with torch.no_grad():
            expected = (function(images + step) - function(images - step)).sum() / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-8)
