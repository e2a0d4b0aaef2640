"""LAION's aesthetic predictor v2: what people rated pictures, as a linear function of CLIP's image embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import CLIPModel

from pipeline.faults import Faults
from pipeline.rewards.affine_head import AffineHead
from pipeline.rewards.base import Reward
from pipeline.rewards.checkpoint_files import (
    directory_of,
    local_file,
    read_state_dict,
    refuse_missing_path,
    require_file,
)
from pipeline.rewards.clip import PREPROCESSOR_FILE, check_clip_model, load_clip_model, unit_vectors
from pipeline.rewards.clip_preprocessing import Preprocessing, load_preprocessing

HEAD_FILES = (
    "aesthetic-model.pth",
    "sac+logos+ava1-l14-linearMSE.pth",
    "sac+logos+ava1-l14-linearMSE.safetensors",
    "model.safetensors",
)
"""Names under which the head is published, first choice first; the last one is also that of CLIP's own weights."""


class Aesthetic(Reward):
    """head(image embedding / its length), on the raters' scale from 1 to 10 (Schuhmann 2022); the prompt is not read.

    ``path`` is the file of the head, or a directory or hub id that holds it under one of its published names. The CLIP
    it reads comes from the same directory where that holds one (preprocessor_config.json), and from the hub otherwise.
    The declared scale is 0.5, a round figure for how far images of one base model lie apart.
    """

    name: ClassVar[str] = "aesthetic"
    formula: ClassVar[str] = "w · e + b, e the unit image embedding"
    usual_scores: ClassVar[str] = "5.79"
    differentiable: ClassVar[bool] = True
    needs_path: ClassVar[bool] = True
    default_path: ClassVar[str | None] = "trl-lib/ddpo-aesthetic-predictor"
    clip_path: ClassVar[str] = "openai/clip-vit-large-patch14"
    weights_mebibytes: ClassVar[int | None] = 580
    licence: ClassVar[str] = "Apache-2.0; its CLIP MIT"
    embeds: ClassVar[bool] = True
    scale: float = 0.5

    def __init__(self, model: CLIPModel, preprocessing: Preprocessing, head: AffineHead) -> None:
        """Take the image tower of ``model``, freeze it, and put ``head`` beside it; the text tower is let go.

        Raises:
            ValueError: the head reads embeddings of another width than ``model`` makes.
        """
        width = model.config.projection_dim
        if len(head.weight) != width:
            raise ValueError(f"the aesthetic head reads {len(head.weight)} features, its CLIP makes {width}")
        self.tower = model.vision_model.eval().requires_grad_(False)
        self.projection = model.visual_projection.requires_grad_(False)
        self.preprocessing = preprocessing
        self.head = head.to(model.device, torch.promote_types(model.dtype, torch.float32))

    @classmethod
    def check_path(cls, path: str | None) -> None:
        """Refuse a path without a head, and a CLIP whose files are not all there; reads no weights.

        Raises:
            ValueError: which file is missing, and how to get it.
        """
        super().check_path(path)
        source = cls.path_or_default(path)
        refuse_missing_path(source)
        clip = cls._clip(source)
        faults = Faults()
        if not Path(source).is_file():
            with faults.noted():
                require_file(cls.name, source, _head_files(source), cls.default_path)
        with faults.noted():
            check_clip_model(cls.name, clip, cls.clip_path)
        with faults.noted():
            require_file(cls.name, clip, (PREPROCESSOR_FILE,), cls.clip_path)
            load_preprocessing(clip)
        faults.raise_any()

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load head and CLIP; the image tower runs in ``dtype``, the head in float32 or better.

        Raises:
            ValueError: a file is missing, or holds something else.
        """
        cls.check_path(path)
        source = cls.path_or_default(path)
        file = Path(source)
        if not file.is_file():
            file = local_file(source, require_file(cls.name, source, _head_files(source)))
        try:
            head = AffineHead.fold(read_state_dict(file))
        except ValueError as error:
            raise ValueError(f"reward.path {str(file)!r} is no aesthetic head: {error}") from error
        clip = cls._clip(source)
        return cls(load_clip_model(clip, dtype).to(device), load_preprocessing(clip), head)

    @classmethod
    def _clip(cls, source: str) -> str:
        """The directory of the head where it holds a CLIP too, else the hub id."""
        return directory_of(source) if _holds_clip(source) else cls.clip_path

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (B, 3, H, W) in [0, 1]; ``prompts`` (B) do not matter.

        Returns:
            (B,) float32, differentiable.
        """
        assert len(images) == len(prompts), f"{len(images)} images for {len(prompts)} prompts"
        return self.ratings(images).float()

    def ratings(self, images: Tensor) -> Tensor:
        """Return the score (B,) in the precision it is computed in: float32, or float64 with a float64 model."""
        return self.head(self.embed_images(images))

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit image embeddings (B, D) of ``images`` (B, 3, H, W) in [0, 1], in float32 or better; differentiable."""
        weight = self.projection.weight
        pixel_values = self.preprocessing(images.to(weight.device)).to(weight.dtype)
        return unit_vectors(self.projection(self.tower(pixel_values=pixel_values).pooler_output))


def _holds_clip(source: str) -> bool:
    """Whether a CLIP lies in the directory ``source``, or in that of the file ``source``."""
    return (Path(directory_of(source)) / PREPROCESSOR_FILE).is_file()


def _head_files(source: str) -> tuple[str, ...]:
    """Names the head may have in ``source``: beside a CLIP, model.safetensors is CLIP's."""
    return HEAD_FILES[:-1] if _holds_clip(source) else HEAD_FILES
