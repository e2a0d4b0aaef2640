"""Stage 1: the autoencoder that turns 64x64 scenes into 8x8 latents of unit spread."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from pipeline.demo import architectures
from pipeline.demo.renderer import draw_scenes, random_attributes
from pipeline.demo.training import LoopConfig, train

KL_WEIGHT = 2e-4
SQUARED_WEIGHT = 4.0
ABSOLUTE_WEIGHT = 0.5
EDGE_WEIGHT = 0.5


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences of neighbouring pixels."""
    return images.diff(dim=-1), images.diff(dim=-2)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error, which learns colours early, and absolute errors of pixels and edges, which keep them crisp."""
    pixels = SQUARED_WEIGHT * F.mse_loss(output, target) + ABSOLUTE_WEIGHT * F.l1_loss(output, target)
    edges = sum(F.l1_loss(a, b) for a, b in zip(_edges(output), _edges(target), strict=True))
    return pixels + EDGE_WEIGHT * edges


def train_vae(
    config: LoopConfig,
    batch_size: int,
    device: torch.device,
    checkpoint: Path,
    on_checkpoint: Callable[[int, AutoencoderKL], None] | None = None,
) -> AutoencoderKL:
    """Train the autoencoder on random scenes in [-1, 1] and set its scaling factor from data."""
    torch.manual_seed(config.seed)
    vae = AutoencoderKL.from_config(architectures.VAE).to(device, memory_format=torch.channels_last)

    def gradient_function(model: AutoencoderKL, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes = draw_scenes(random_attributes(batch_size, 0.25, generator), generator)
        images = (scenes * 2 - 1).to(device, memory_format=torch.channels_last)
        noise = torch.randn(batch_size, architectures.LATENT_CHANNELS, 8, 8, generator=generator).to(device)
        posterior = model.encode(images).latent_dist
        output = model.decode(posterior.mean + posterior.std * noise).sample
        reconstruction = reconstruction_loss(output, images)
        divergence = posterior.kl().mean() / noise[0].numel()
        error = F.mse_loss(output.detach(), images) / 4
        numbers = {"psnr": -10 * error.log10().item(), "kl": divergence.item(), "std": posterior.std.mean().item()}
        loss = reconstruction + KL_WEIGHT * divergence
        loss.backward()
        return loss.detach(), numbers

    vae = train("vae", vae, gradient_function, config, checkpoint, on_checkpoint)
    vae.register_to_config(scaling_factor=measure_scaling_factor(vae, device))
    return vae


def refine_decoder(config: LoopConfig, batch_size: int, vae: AutoencoderKL, checkpoint: Path) -> AutoencoderKL:
    """Go on training the decoder alone: latents stay as they are, so a denoiser can train on them meanwhile."""
    torch.manual_seed(config.seed)
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)

    def gradient_function(model: AutoencoderKL, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes = draw_scenes(random_attributes(batch_size, 0.25, generator), generator)
        images = (scenes * 2 - 1).to(vae.device, memory_format=torch.channels_last)
        with torch.no_grad():
            posterior = model.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(vae.device)
        output = model.decode(posterior.mean + posterior.std * noise).sample
        error = F.mse_loss(output.detach(), images) / 4
        loss = reconstruction_loss(output, images)
        loss.backward()
        return loss.detach(), {"psnr": -10 * error.log10().item()}

    return train("decoder", vae, gradient_function, config, checkpoint)


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderKL, device: torch.device, count: int = 1024) -> float:
    """One over the standard deviation of sampled latents of ``count`` scenes."""
    generator = torch.Generator().manual_seed(1)
    images = draw_scenes(random_attributes(count, 0.25, generator), generator) * 2 - 1
    latents = [vae.encode(chunk.to(device)).latent_dist.sample() for chunk in images.split(64)]
    return round(1 / torch.cat(latents).std().item(), 5)
