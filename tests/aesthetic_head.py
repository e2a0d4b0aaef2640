"""The head of the aesthetic predictor as it is published, at any widths."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class PublishedHead(nn.Module):
    """The published network as it was trained: linear layers and dropouts, no activations; names `layers.N`."""

    def __init__(self, widths: tuple[int, ...] = (768, 1024, 128, 64, 16, 1)) -> None:
        super().__init__()
        linear = [nn.Linear(inner, outer) for inner, outer in pairwise(widths)]
        self.layers = nn.Sequential(
            linear[0], nn.Dropout(0.2), linear[1], nn.Dropout(0.2), linear[2], nn.Dropout(0.1), linear[3], linear[4]
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).squeeze(-1)


def published_head(widths: tuple[int, ...]) -> PublishedHead:
    torch.manual_seed(4)
    return PublishedHead(widths).eval()
