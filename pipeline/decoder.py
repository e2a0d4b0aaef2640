"""Latents to images: the VAE decoder of a Stable Diffusion pipeline, in chunks and differentiable."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor


class LatentDecoder:
    """A frozen VAE decoder. Decoding dominates the cost and the memory of step-wise rewards, hence the chunks."""

    def __init__(
        self,
        vae: AutoencoderKL,
        chunk_size: int,
        gradient_chunk_size: int | None = None,
        step_vae: AutoencoderTiny | None = None,
    ) -> None:
        """Freeze ``vae`` and decode at most ``chunk_size`` latents at once.

        Args:
            gradient_chunk_size: as many at most where the decoding is differentiated, by whoever does that; by default
                ``chunk_size``.
            step_vae: decodes predicted latents, on the device and in the precision of ``vae``; by default ``vae`` does.

        Raises:
            ValueError: a size below 1.
        """
        self.chunk_size = chunk_size
        self.gradient_chunk_size = chunk_size if gradient_chunk_size is None else gradient_chunk_size
        if (size := min(self.chunk_size, self.gradient_chunk_size)) < 1:
            raise ValueError(f"the decoder's chunk size must be at least 1, got {size}")
        self.vae = vae.eval().requires_grad_(False)
        self.step_vae = self.vae if step_vae is None else step_vae.eval().requires_grad_(False)
        # Where the decoder computes, and its precision. diffusers finds them by walking through the whole network.
        self.device: torch.device = vae.device
        self.dtype: torch.dtype = vae.dtype

    @classmethod
    def load(
        cls,
        path: str,
        device: torch.device,
        dtype: torch.dtype,
        chunk_size: int,
        gradient_chunk_size: int | None = None,
        step_decoder: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Load the ``vae`` folder of the StableDiffusionPipeline directory or hub id ``path``.

        Args:
            step_decoder: directory or hub id of an AutoencoderTiny that decodes predicted latents.
            revision: commit, tag or branch of the hub id ``path``.

        Raises:
            ValueError: ``path`` holds no such VAE, or a size is below 1.
        """
        try:
            vae = AutoencoderKL.from_pretrained(path, subfolder="vae", revision=revision, torch_dtype=dtype)
        except OSError as error:
            raise ValueError(
                f"{path!r} has no VAE: give the directory of a StableDiffusionPipeline (with its vae folder) or a hub "
                f"id that can be reached: {error}"
            ) from error
        if step_decoder is None:
            return cls(vae.to(device), chunk_size, gradient_chunk_size)
        tiny = AutoencoderTiny.from_pretrained(step_decoder, torch_dtype=dtype)
        return cls(vae.to(device), chunk_size, gradient_chunk_size, tiny.to(device))

    def decode(self, latents: Tensor, timestep: int = 0) -> Tensor:
        """Decode scaled ``latents`` (B, C, h, w) float32 to images (B, 3, H, W) float32 in [0, 1], differentiably.

        image = clamp(VAE(latents / scaling_factor + shift_factor) / 2 + 1/2, 0, 1), the latents being moved to the
        decoder's device. Under autograd the graph of all chunks is alive at once: to bound memory, differentiate
        chunk by chunk as :class:`pipeline.scoring.LatentScorer` does.

        Args:
            timestep: diffusion time of the network call that predicted ``latents``, 0 if they are finished.
        """
        vae = self.step_vae if timestep > 0 else self.vae
        return torch.cat([self._decode_chunk(chunk, vae) for chunk in latents.split(self.chunk_size)])

    def _decode_chunk(self, latents: Tensor, vae: AutoencoderKL | AutoencoderTiny) -> Tensor:
        """(b, C, h, w) -> (b, 3, H, W) in one call of the VAE."""
        shift = vae.config.get("shift_factor") or 0.0
        unscaled = latents.to(self.device) / vae.config.scaling_factor + shift
        images = vae.decode(unscaled.to(self.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)


def check_step_decoder(path: str | None, model_path: str, revision: str | None = None) -> None:
    """Refuse a decoder of predicted images that does not take the model's latents.

    Raises:
        ValueError: it cannot be found, or is another network; what to give instead.
    """
    if path is None:
        return
    name = f"reward_actors.step_decoder {path!r}"
    try:
        tiny: dict[str, Any] = AutoencoderTiny.load_config(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is neither a directory nor a hub id that can be reached: {error}") from error
    if tiny.get("_class_name") != "AutoencoderTiny":
        raise ValueError(f"{name} is of class {tiny.get('_class_name')}; an AutoencoderTiny is needed")
    vae: dict[str, Any] = AutoencoderKL.load_config(model_path, subfolder="vae", revision=revision)
    found, needed = (
        _channels_and_factor(tiny, "decoder_block_out_channels"),
        _channels_and_factor(vae, "block_out_channels"),
    )
    if found != needed:
        raise ValueError(
            f"{name} takes {found[0]} channels and makes pictures {found[1]} times as large as latents, but the VAE of "
            f"{model_path!r} has {needed[0]} and {needed[1]}; give one that was made for it"
        )


def _channels_and_factor(config: dict[str, Any], blocks: str) -> tuple[int, int]:
    return config["latent_channels"], 2 ** (len(config[blocks]) - 1)
