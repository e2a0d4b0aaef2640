"""A gradient carried back through a network that may compute in half precision."""

import torch
from torch import Tensor


def pull_back(outputs: Tensor, inputs: Tensor, gradient: Tensor) -> Tensor:
    """d r / d inputs of d r / d outputs, free of the precision of the graph between them.

    Rewards change by little with a single number of a latent or of a picture, and half precision would round so small a
    gradient to nothing on its way through the network. Each sample's is scaled to about 1 first, by a power of two,
    which changes no bit in float32.

    Args:
        outputs: (B, C, H, W) float32, computed from `inputs` sample by sample; its graph is freed.
        inputs: (B, c, h, w) float32, which requires a gradient.
        gradient: (B, C, H, W) float32, on the device of `outputs`.

    Returns:
        (B, c, h, w) float32; what overflows on the way is infinite or NaN.
    """
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    exponent = torch.frexp(largest).exponent.clamp(-100, 100)
    (pulled,) = torch.autograd.grad(outputs, inputs, torch.ldexp(gradient, -exponent))
    return torch.ldexp(pulled, exponent)
