"""Rewards of one's own for evaluations on actors: one with aspects, and ones that break their promise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pipeline.rewards import Reward


class Halves(Reward):
    """Mean brightness, and that of each half; prompts of stars say nothing about the right one."""

    name, differentiable, needs_path, licence = "halves", False, False, "none"
    aspects = ("left", "right")

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        return cls()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean(dim=(1, 2, 3))

    def score_aspects(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        halves = torch.stack([half.mean(dim=(1, 2, 3)) for half in images.chunk(2, dim=3)], dim=1)
        halves[["star" in prompt for prompt in prompts], 1] = torch.nan
        return halves


class Tires(Halves):
    """Serves as many calls as its path says, and then has no number any more."""

    name, needs_path = "tires", True

    def __init__(self, calls: int) -> None:
        self.calls = calls

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        return cls(int(path or 0))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.calls -= 1
        return super().score(images, prompts) * (1.0 if self.calls >= 0 else torch.nan)


class Miscounts(Halves):
    """A score too few for every batch."""

    name = "miscounts"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(images, prompts)[1:]


class Hiccups(Halves):
    """Has no number the first time that it is asked, and then leaves the file that its path names."""

    name, needs_path = "hiccups", True
    aspects = ()

    def __init__(self, asked: Path) -> None:
        self.asked = asked

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        assert path is not None
        return cls(Path(path))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = super().score(images, prompts)
        if not self.asked.exists():
            self.asked.touch()
            scores[0] = torch.nan
        return scores
