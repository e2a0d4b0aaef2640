"""Compressibility of a picture as JPEG: the reward that needs no weights (DDPO, TailorPO Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import ClassVar, Self

import torch
from PIL import Image
from torch import Tensor

from pipeline.pixels import to_pil
from pipeline.rewards.base import Reward

QUALITY = 95


class JpegCompressibility(Reward):
    """Minus the size in kB (1000 bytes) of the quality-95 JPEG: small files, simple pictures, score high.

    The size of a file has no gradient, so this reward ranks and cannot guide. Its declared scale is 1 kB: the spread
    grows with the resolution, so no other single number fits; a weighted sum of rewards sets ``reward.scale``.
    """

    name: ClassVar[str] = "jpeg_compressibility"
    formula: ClassVar[str] = "-(kB of the JPEG at quality 95)"
    usual_scores: ClassVar[str] = "-105.5"
    differentiable: ClassVar[bool] = False
    needs_path: ClassVar[bool] = False
    weights_mebibytes: ClassVar[int | None] = 0
    licence: ClassVar[str] = "none"
    sign: ClassVar[float] = -1.0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Nothing to load: ``dtype`` does not matter and ``device`` is where scores are put.

        Raises:
            ValueError: a path was given.
        """
        cls.check_path(path)
        return cls(device)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (B, 3, H, W) in [0, 1]; ``prompts`` (B) do not matter. Returns (B,) float32, in kB.

        Raises:
            ValueError: images of another shape, or with pixels that are not finite.
        """
        assert len(images) == len(prompts), f"{len(images)} images for {len(prompts)} prompts"
        sizes = [jpeg_bytes(picture) for picture in to_pil(images)]
        return torch.tensor(sizes, dtype=torch.float32, device=self.device) * (self.sign / 1000)


class JpegIncompressibility(JpegCompressibility):
    """The size in kB of the quality-95 JPEG: the negative of ``jpeg_compressibility``."""

    name: ClassVar[str] = "jpeg_incompressibility"
    formula: ClassVar[str] = "kB of the JPEG at quality 95"
    usual_scores: ClassVar[str] = "105.5"
    sign: ClassVar[float] = 1.0


def jpeg_bytes(picture: Image.Image) -> int:
    """Return the number of bytes of ``picture`` as JPEG of quality 95."""
    buffer = BytesIO()
    picture.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()
