"""The held-out judge of faithfulness: a small classifier that reads every attribute of a scene from the image alone.

It never sees the prompt. A prompt is brought into canonical form (left or upper object first), and only the
attributes it states are compared. The judge is trained apart from the reward and never serves as one.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.demo.grammar import ATTRIBUTE_VALUES, ATTRIBUTES, UNSTATED, parse_prompt

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class JudgeModel(nn.Module):
    """A convolutional classifier of 64x64 images with one head per attribute of ``grammar.ATTRIBUTES``."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.width = width
        channels = (width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        previous = 3
        for channel in channels:
            layers += [nn.Conv2d(previous, channel, 3, stride=2, padding=1), nn.GroupNorm(4, channel), nn.ReLU()]
            layers += [nn.Conv2d(channel, channel, 3, padding=1), nn.GroupNorm(4, channel), nn.ReLU()]
            previous = channel
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(previous * 4 * 4, 192)
        self.head = nn.Linear(192, sum(len(values) for values in ATTRIBUTE_VALUES))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, 64, 64) in [0, 1] to one (B, values) tensor of logits per attribute."""
        hidden = F.relu(self.hidden(self.features(images * 2 - 1).flatten(1)))
        return list(self.head(hidden).split([len(values) for values in ATTRIBUTE_VALUES], dim=1))

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """The most likely attribute rows (B, 8) of images (B, 3, 64, 64); the second object of a single is unstated."""
        rows = torch.stack([logits.argmax(dim=1) for logits in self(images)], dim=1)
        rows[rows[:, 0] == 0, ATTRIBUTES.index("size_1") :] = UNSTATED
        return rows

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "JudgeModel":
        """Load ``config.json`` and ``model.safetensors`` of a directory, in float32 and evaluation mode.

        Raises:
            ValueError: the directory lacks one of the two files.
        """
        check_directory(Path(path))
        model = cls(**json.loads((Path(path) / CONFIG_FILE).read_text()))
        weights = {name: weight.float() for name, weight in load_file(Path(path) / WEIGHTS_FILE).items()}
        model.load_state_dict(weights)
        return model.eval()


def check_directory(path: Path) -> None:
    """Refuse a directory that cannot hold a judge.

    Raises:
        ValueError: the configuration or the weights are missing.
    """
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (path / name).is_file()]
    if missing:
        are, them = ("are", "them") if len(missing) > 1 else ("is", "it")
        raise ValueError(
            f"no scene judge in {str(path)!r}: {' and '.join(missing)} {are} missing; name a directory that holds "
            f"{them}"
        )


def stated_attributes(prompts: Sequence[str]) -> Tensor:
    """The canonical attribute rows (B, 8) of prompts, ``UNSTATED`` where a prompt leaves an attribute open.

    Raises:
        ValueError: a text is no prompt of the demo world.
    """
    return torch.tensor([parse_prompt(prompt).attributes() for prompt in prompts], dtype=torch.long)


def attributes_correct(read: Tensor, stated: Tensor) -> Tensor:
    """Whether each attribute read is as stated: two (B, 8) to (B, 8) bool; what is not stated counts as right."""
    return (stated == UNSTATED) | (read == stated)


def all_correct(read: Tensor, stated: Tensor) -> Tensor:
    """Whether everything a prompt states is right: two (B, 8) to (B,) bool."""
    return attributes_correct(read, stated).all(dim=1)
