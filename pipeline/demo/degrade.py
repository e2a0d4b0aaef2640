"""Random degradations of scene images: blurry, noisy and undecided pictures, as early x0 predictions are."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B, 3, H, W) with one standard deviation in pixels per image (B,); borders are repeated."""
    radius = 6
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    sigma = sigma.to(images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-2)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (B, 2 * radius + 1)
    batch, channels, height, width = images.shape
    weight = kernel.repeat_interleave(channels, dim=0)
    flat = F.pad(images, (radius,) * 4, mode="replicate").reshape(1, batch * channels, height + 12, width + 12)
    flat = F.conv2d(flat, weight[:, None, None, :], groups=batch * channels)
    flat = F.conv2d(flat, weight[:, None, :, None], groups=batch * channels)
    return flat.reshape(batch, channels, height, width)


def on_some(images: Tensor, share: float, generator: torch.Generator, degrade: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``degrade`` to a random subset of a batch, each image in it with probability ``share``."""
    rows = (torch.rand(len(images), generator=generator) < share).nonzero(as_tuple=True)[0].to(images.device)
    if len(rows) == 0:
        return images
    return images.index_copy(0, rows, degrade(images[rows]))


def add_noise(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Add white noise of a random standard deviation up to ``largest`` to each image."""
    scale = torch.rand(len(images), 1, 1, 1, generator=generator) * largest
    return images + (scale * torch.randn(images.shape, generator=generator)).to(images.device)


def jitter_colours(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Scale and shift every channel of every image by a random factor up to ``amount``."""
    gain = 1 + amount * (2 * torch.rand(len(images), 3, 1, 1, generator=generator) - 1)
    shift = amount * (2 * torch.rand(len(images), 3, 1, 1, generator=generator) - 1)
    return images * gain.to(images.device) + shift.to(images.device)


def add_coarse_noise(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Add smooth colour noise of an 8x8 grid, as noise in the latents gives once decoded, up to ``largest`` strong."""
    scale = torch.rand(len(images), 1, 1, 1, generator=generator) * largest
    noise = (scale * torch.randn(len(images), 3, 8, 8, generator=generator)).to(images.device)
    return images + F.interpolate(noise, size=images.shape[-2:], mode="bicubic")


def blend_with_others(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Mix up to ``largest`` of another image of the batch into each, as an undecided x0 prediction mixes scenes."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device) * largest
    other = torch.randperm(len(images), generator=generator)
    return (1 - share) * images + share * images[other]
