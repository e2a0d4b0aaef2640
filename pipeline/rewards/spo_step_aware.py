"""SPO's step-aware preference model (arXiv:2406.04314): a PickScore that knows how noisy the latents were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPConfig

from pipeline.faults import Faults
from pipeline.rewards.base import StepAwareReward
from pipeline.rewards.checkpoint_files import read_state_dict, refuse_missing_path
from pipeline.rewards.clip import ClipReward, in_precision, load_tokenizer, unit_vectors
from pipeline.rewards.clip_preprocessing import ClipPreprocessing, load_preprocessing
from pipeline.rewards.published_files import load_exactly, place_of, require_weights, weights_of
from pipeline.rewards.step_aware_clip import StepAwareClip

HUB_ID, WEIGHTS = "SPO-Diffusion-Models/Step-Aware_Preference_Models", "sd-v1-5_step-aware_preference_model.bin"
CONFIG_HUB_ID, CONFIG_FILES = "yuvalkirstain/PickScore_v1", ("config.json",)
PROCESSOR_HUB_ID = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
TOKENIZER_FILES, PREPROCESSOR_FILES = ("tokenizer.json", "vocab.json"), ("preprocessor_config.json",)


class SpoStepAware(StepAwareReward, ClipReward):
    """exp(logit_scale) * cos(embedding of image and time, text embedding); made for Stable Diffusion 1.5.

    ``path`` is a directory or hub id with the file that SPO publishes, or a file of weights, whatever it is called.
    Configuration, preprocessing and tokenizer come from the same directory where they lie there, and otherwise from
    PickScore and the CLIP it started from. The declared scale is 1, as that of PickScore: the score is a logit.
    """

    name: ClassVar[str] = "spo_step_aware"
    formula: ClassVar[str] = "exp(logit_scale) · cos, the image embedding depending on the time"
    differentiable: ClassVar[bool] = True
    needs_path: ClassVar[bool] = True
    default_path: ClassVar[str | None] = HUB_ID
    weights_mebibytes: ClassVar[int] = 2491
    licence: ClassVar[str] = "MIT"

    @classmethod
    def check_path(cls, path: str | None) -> None:
        """Refuse a path without the weights, or configuration, preprocessing or tokenizer that are nowhere.

        Raises:
            ValueError: what is missing, and the command that fetches it. The weights are not read.
        """
        super(ClipReward, cls).check_path(path)  # a plain CLIP has its weights under other names
        source = path or HUB_ID
        refuse_missing_path(source)
        faults = Faults()
        with faults.noted():
            require_weights(cls.name, source, WEIGHTS, HUB_ID)
        with faults.noted():
            place_of(cls.name, source, CONFIG_FILES, CONFIG_HUB_ID)
        with faults.noted():
            load_tokenizer(place_of(cls.name, source, TOKENIZER_FILES, PROCESSOR_HUB_ID))
        with faults.noted():
            load_preprocessing(place_of(cls.name, source, PREPROCESSOR_FILES, PROCESSOR_HUB_ID))
        faults.raise_any()

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the checkpoint of a file, directory or hub id; its towers run in ``dtype``.

        Raises:
            ValueError: a file is missing, damaged, or not what it should be.
        """
        cls.check_path(path)
        source = path or HUB_ID
        config = CLIPConfig.from_pretrained(place_of(cls.name, source, CONFIG_FILES, CONFIG_HUB_ID))
        model = load_model(config, weights_of(source, WEIGHTS), dtype)
        tokenizer = load_tokenizer(place_of(cls.name, source, TOKENIZER_FILES, PROCESSOR_HUB_ID))
        preprocessing = load_preprocessing(place_of(cls.name, source, PREPROCESSOR_FILES, PROCESSOR_HUB_ID))
        return cls(model.to(device), tokenizer, PlainPreprocessing(**vars(preprocessing)))

    def score_at(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """Score ``images`` (B, 3, H, W) in [0, 1] predicted at times ``timesteps`` (B,) against ``prompts`` (B).

        Returns:
            (B,) float32, differentiable in the images.
        """
        return self.logits_at(images, prompts, timesteps).float()

    def logits(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """:meth:`logits_at` time 0."""
        return self.logits_at(images, prompts, torch.zeros(len(prompts), dtype=torch.int64))

    def logits_at(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """Return the score (B,) in the precision it is computed in: float32, or float64 with a float64 model."""
        assert len(images) == len(prompts) == len(timesteps)
        text_embeddings = torch.stack([self._text_embedding(prompt) for prompt in prompts])
        return self.model.logit_scale.exp() * (self._embed_at(images, timesteps) * text_embeddings).sum(dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit image embeddings (B, D) of finished ``images`` (B, 3, H, W)."""
        return self._embed_at(images, torch.zeros(len(images), dtype=torch.int64))

    def _embed_at(self, images: Tensor, timesteps: Tensor) -> Tensor:
        tower = self.model.vision_model
        pixel_values = self.preprocessing(images.to(tower.device)).to(tower.dtype)
        return unit_vectors(self.model.image_features(pixel_values, timesteps.to(tower.device)))


@dataclass(frozen=True)
class PlainPreprocessing(ClipPreprocessing):
    """CLIP's preprocessing with torch's plain bicubic resize, not antialiased, on which SPO trained its model."""

    def _resize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H', W'), the short side being that of the crop and the other the nearest pixel."""
        scale = min(self.crop) / min(images.shape[-2:])
        size = [int(length * scale + 0.5) for length in images.shape[-2:]]
        if list(images.shape[-2:]) == size:
            return images
        return interpolate(images, size=size, mode="bicubic").clamp(0, 1)


def load_model(config: CLIPConfig, weights: Path, dtype: torch.dtype) -> StepAwareClip:
    """Load the network in ``dtype``, its logit scale in float32 at least.

    Raises:
        ValueError: the file is damaged, or holds another network.
    """
    tensors = {name.removeprefix("model."): tensor for name, tensor in read_state_dict(weights).items()}
    with init_empty_weights(include_buffers=False):
        model = StepAwareClip(config)
    load_exactly(model, tensors, weights)
    return in_precision(model.to(torch.promote_types(dtype, torch.float32)), dtype)
