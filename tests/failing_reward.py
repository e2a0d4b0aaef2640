"""A reward that fails as a file tells it to; workers import it by its name, as they do a user's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from pipeline.rewards.base import Reward, RewardError

SECRET_OF_THE_WORKER = "planted-0123456789-worker"


class FailingReward(Reward):
    """Prefers dark images; raises, or returns a score too many, where the file at `path` says so."""

    name: ClassVar[str] = "failing"
    formula: ClassVar[str] = "minus the mean pixel"
    differentiable: ClassVar[bool] = True
    needs_path: ClassVar[bool] = True
    licence: ClassVar[str] = "none"

    def __init__(self, file: Path) -> None:
        """Scores as `file` says at each call."""
        self.file = file

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Nothing to load; the process learns a secret that no other one knows."""
        cls.check_path(path)
        assert path is not None
        os.environ["SCORES_TOKEN"] = SECRET_OF_THE_WORKER
        return cls(Path(path))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,), unless the file says otherwise."""
        fault = self.file.read_text(encoding="utf-8")
        if fault == "secret":
            raise RewardError(f"no score for who comes with {os.environ['SCORES_TOKEN']}")
        scores = -images.mean(dim=(1, 2, 3)).float()
        return torch.cat([scores, scores[:1]]) if fault == "shape" else scores
