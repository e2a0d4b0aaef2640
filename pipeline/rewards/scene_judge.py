"""The demo world's held-out judge: GenEval in miniature, for evaluation alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from pipeline.demo.grammar import ATTRIBUTES, UNSTATED
from pipeline.demo.judge import JudgeModel, all_correct, attributes_correct, check_directory, stated_attributes
from pipeline.rewards.base import Reward


class SceneJudge(Reward):
    """1 where everything the prompt states is right in the image (layout, colours, shapes, sizes, background), else 0.

    The classifier reads the image without the prompt; attributes that the prompt leaves open are not judged.
    """

    name: ClassVar[str] = "scene_judge"
    formula: ClassVar[str] = "1 if everything the prompt states is right, else 0"
    differentiable: ClassVar[bool] = False
    needs_path: ClassVar[bool] = True
    weights_mebibytes: ClassVar[int | None] = 1
    held_out_only: ClassVar[bool] = True
    licence: ClassVar[str] = "Apache-2.0"
    aspects: ClassVar[tuple[str, ...]] = ("layout", "background", "sizes", "colours", "shapes")

    def __init__(self, model: JudgeModel, device: torch.device) -> None:
        """Take a loaded model, move it to ``device`` and freeze it; it always runs in float32."""
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device

    @classmethod
    def check_path(cls, path: str | None) -> None:
        """Refuse a directory that lacks ``config.json`` or ``model.safetensors``.

        Raises:
            ValueError: no path, or a path that holds no judge.
        """
        super().check_path(path)
        assert path is not None
        check_directory(Path(path))

    @classmethod
    def check_prompts(cls, prompts: Sequence[str]) -> None:
        """Refuse prompts of any other world.

        Raises:
            ValueError: there is none, or one that is no prompt of the demo world.
        """
        super().check_prompts(prompts)
        stated_attributes(prompts)

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the judge of the directory ``path``; ``dtype`` is ignored, the judge is tiny and runs in float32.

        Raises:
            ValueError: no path, or a path that holds no judge.
        """
        cls.check_path(path)
        assert path is not None
        return cls(JudgeModel.from_pretrained(path), device)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """1.0 or 0.0 for each of ``images`` (B, 3, 64, 64) in [0, 1]; returns (B,) float32.

        Raises:
            ValueError: a prompt is not one of the demo world (the message names it), or images of another size.
        """
        return all_correct(self.read(images), stated_attributes(prompts).to(self.device)).float()

    def attribute_scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Whether each attribute of ``grammar.ATTRIBUTES`` is as stated: (B, 8) bool, True where it is left open."""
        return attributes_correct(self.read(images), stated_attributes(prompts).to(self.device))

    def score_aspects(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The share of what a prompt states in each of ``aspects`` that is right, over its one or two objects.

        Returns:
            (B, 5) float32, NaN where nothing is stated.
        """
        judged = (stated_attributes(prompts).to(self.device) != UNSTATED).float()  # (B, 8)
        right = self.attribute_scores(images, prompts).float() * judged
        columns = [
            [index for index, name in enumerate(ATTRIBUTES) if name.split("_")[0] == aspect.removesuffix("s")]
            for aspect in self.aspects
        ]
        # Nothing of nothing is NaN.
        shares = [right[:, own].sum(dim=1) / judged[:, own].sum(dim=1) for own in columns]
        return torch.stack(shares, dim=1)

    def read(self, images: Tensor) -> Tensor:
        """The attribute rows (B, 8) the judge sees in ``images`` (B, 3, 64, 64).

        Raises:
            ValueError: images of another size.
        """
        if images.shape[1:] != (3, 64, 64):
            raise ValueError(f"the scene judge reads images (B, 3, 64, 64), not {tuple(images.shape)}")
        return self.model.read(images.detach().to(self.device, torch.float32))
