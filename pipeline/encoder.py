"""Images to latents: the VAE encoder of a Stable Diffusion pipeline."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.preference_pairs import decode_image


class LatentEncoder:
    """A frozen VAE encoder, the other way round from :class:`pipeline.decoder.LatentDecoder`."""

    def __init__(self, vae: AutoencoderKL) -> None:
        """Freeze ``vae``."""
        self.vae = vae.eval().requires_grad_(False)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels along an edge of a latent's pixel."""

    @classmethod
    def load(cls, path: str, device: torch.device, dtype: torch.dtype, revision: str | None = None) -> Self:
        """Load the ``vae`` folder of the StableDiffusionPipeline directory or hub id ``path``, at ``revision``."""
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", revision=revision, torch_dtype=dtype)
        return cls(vae.to(device))

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """A draw from the encoder's distribution, scaled as the denoiser takes it.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            noise: (B, C, h, w) float32 standard normal, which decides the draw.

        Returns:
            latents (B, C, h, w) float32 on the encoder's device.
        """
        distribution = self.vae.encode((images * 2 - 1).to(self.vae.device, self.vae.dtype)).latent_dist
        latents = distribution.mean.float() + distribution.std.float() * noise.to(self.vae.device)
        shift = self.vae.config.get("shift_factor") or 0.0
        return (latents - shift) * self.vae.config.scaling_factor


def decode_images(contents: Sequence[bytes], size: int) -> Tensor:
    """Encoded images -> (B, 3, size, size) float32 in [0, 1], scaled to cover the square and cropped to its middle."""
    images = [ImageOps.fit(decode_image(content), (size, size), Image.Resampling.BICUBIC) for content in contents]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
