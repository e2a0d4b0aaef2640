"""Image tensors to pixels of eight bits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert ``images`` (B, 3, H, W), floating point in [0, 1], to RGB pictures, as :func:`to_pixels` does.

    Raises:
        ValueError: wrong shape, or a pixel that is NaN or infinite.
    """
    return [Image.fromarray(picture) for picture in to_pixels(images)]


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Convert ``images`` (B, 3, H, W), floating point in [0, 1], to (B, H, W, 3) uint8: round(255 x), clamped.

    Raises:
        ValueError: wrong shape, or a pixel that is NaN or infinite.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have the shape (B, 3, H, W), got {tuple(images.shape)}")
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinite pixels")
    pixels = images.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
