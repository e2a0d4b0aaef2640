"""Latents to images: the VAE decoder of a Stable Diffusion pipeline, in chunks and differentiable."""

from __future__ import annotations

from typing import Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor


class LatentDecoder:
    """A frozen VAE decoder. Decoding dominates the cost and the memory of step-wise rewards, hence the chunks."""

    def __init__(self, vae: AutoencoderKL, chunk_size: int, gradient_chunk_size: int | None = None) -> None:
        """Freeze ``vae`` and decode at most ``chunk_size`` latents at once.

        Args:
            gradient_chunk_size: as many at most where the decoding is differentiated, by whoever does that; by default
                ``chunk_size``.

        Raises:
            ValueError: a size below 1.
        """
        for size in (chunk_size, gradient_chunk_size or chunk_size):
            if size < 1:
                raise ValueError(f"the decoder's chunk size must be at least 1, got {size}")
        self.vae = vae.eval().requires_grad_(False)
        # Where the decoder computes, and its precision. diffusers finds them by walking through the whole network.
        self.device: torch.device = vae.device
        self.dtype: torch.dtype = vae.dtype
        self.chunk_size = chunk_size
        self.gradient_chunk_size = gradient_chunk_size or chunk_size

    @classmethod
    def load(
        cls,
        path: str,
        device: torch.device,
        dtype: torch.dtype,
        chunk_size: int,
        gradient_chunk_size: int | None = None,
    ) -> Self:
        """Load the ``vae`` folder of the StableDiffusionPipeline directory or hub id ``path``.

        Raises:
            ValueError: ``path`` holds no such VAE, or a size is below 1.
        """
        try:
            vae = AutoencoderKL.from_pretrained(path, subfolder="vae", torch_dtype=dtype)
        except OSError as error:
            raise ValueError(
                f"{path!r} has no VAE: give the directory of a StableDiffusionPipeline (with its vae folder) or a hub "
                f"id that can be reached: {error}"
            ) from error
        return cls(vae.to(device), chunk_size, gradient_chunk_size)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled ``latents`` (B, C, h, w) float32 to images (B, 3, H, W) float32 in [0, 1], differentiably.

        image = clamp(VAE(latents / scaling_factor + shift_factor) / 2 + 1/2, 0, 1), the latents being moved to the
        decoder's device. Under autograd the graph of all chunks is alive at once: to bound memory, differentiate
        chunk by chunk as :class:`pipeline.scoring.LatentScorer` does.
        """
        return torch.cat([self._decode_chunk(chunk) for chunk in latents.split(self.chunk_size)])

    def _decode_chunk(self, latents: Tensor) -> Tensor:
        """(b, C, h, w) -> (b, 3, H, W) in one call of the VAE."""
        shift = self.vae.config.get("shift_factor") or 0.0
        unscaled = latents.to(self.device) / self.vae.config.scaling_factor + shift
        images = self.vae.decode(unscaled.to(self.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)
