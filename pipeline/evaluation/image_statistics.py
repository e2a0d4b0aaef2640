"""Cheap properties of pictures that no reward asks for, and that a hacked reward tends to change."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

IMAGE_STATISTICS = ("saturation", "near-black share", "near-white share", "edge density")
"""The rows of `image_statistics`."""

NEAR = 10 / 255
"""A pixel is near black if no channel is above this, near white if none is below 1 - this."""

EDGE = 0.1
"""Slope of the luma, per pixel, above which a pixel lies on an edge: a step of a fifth of the range is one."""

LUMA = (0.299, 0.587, 0.114)


def image_statistics(images: Tensor) -> Tensor:
    """Measure ``images`` (B, 3, H, W) in [0, 1]: a row for each of IMAGE_STATISTICS, (4, B) float32 on the CPU.

    Saturation is HSV's, averaged over pixels, 0 for black; the others are shares of pixels.
    """
    images = images.detach().float()
    largest, smallest = images.amax(dim=1), images.amin(dim=1)  # (B, H, W)
    saturation = torch.where(largest > 0, (largest - smallest) / largest.clamp(min=1e-12), 0.0)
    measures = [saturation, (largest <= NEAR).float(), (smallest >= 1 - NEAR).float(), (slope(images) > EDGE).float()]
    return torch.stack([measure.mean(dim=(1, 2)) for measure in measures]).cpu()


def slope(images: Tensor) -> Tensor:
    """Length of the luma's gradient, (B, 3, H, W) -> (B, H, W), by Sobel's operator: 1 is black to white in a pixel."""
    luma = (images * images.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    smooth, difference = images.new_tensor([1.0, 2.0, 1.0]) / 4, images.new_tensor([-1.0, 0.0, 1.0]) / 2
    kernels = torch.stack([torch.outer(smooth, difference), torch.outer(difference, smooth)])[:, None]
    return conv2d(pad(luma, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1)
