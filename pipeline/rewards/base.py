"""What every reward model offers: a score for each (image, prompt) pair, higher is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor


class RewardError(RuntimeError):
    """A reward broke its promise; the message names it and the prompt. Never replaced by a made-up score."""


class NonFiniteScoreError(RewardError):
    """A score or its gradient is NaN or infinite: damaged weights, too little precision, or images of a policy that
    has diverged.
    """


class NonFiniteImageError(NonFiniteScoreError):
    """The decoded image has NaN or infinite pixels: the policy has diverged, and no reward is at fault."""


class Reward(ABC):
    """A frozen scorer of images against their prompts.

    Class attributes describe the kind of reward, so that a configuration can be checked before any weights are
    loaded, and docs/rewards.md be made from them.

    Attributes:
        name: the name the configuration and the logs use.
        formula: the score, in the notation of docs/rewards.md.
        usual_scores: what images of a base model get, "" where that depends on the checkpoint.
        differentiable: whether ``score`` carries gradients back to the images (guidance needs that).
        needs_path: whether ``load`` needs a checkpoint.
        default_path: hub id of the canonical checkpoint, taken where no path is given; None where there is none.
        weights_mebibytes: memory of the frozen weights in half precision (float16 or bfloat16), twice that in float32;
            None where it depends on the checkpoint.
        licence: licence of the weights, "none" where there are none.
        held_out_only: True for a judge that may evaluate but never serve as the training reward.
        embeds: whether ``embed_images`` maps images into the space of a CLIP, where diversity is measured.
        aspects: what the score is made of, where an evaluation shows that apart; see ``score_aspects``.
        scale: a typical spread of the score, in the score's own unit. Guidance and weighted sums of rewards work on
            ``score / scale``, so that a step size means the same for every reward.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    usual_scores: ClassVar[str] = ""
    differentiable: ClassVar[bool]
    needs_path: ClassVar[bool]
    default_path: ClassVar[str | None] = None
    weights_mebibytes: ClassVar[int | None] = None
    licence: ClassVar[str]
    held_out_only: ClassVar[bool] = False
    aspects: ClassVar[tuple[str, ...]] = ()
    embeds: ClassVar[bool] = False
    scale: float = 1.0

    @classmethod
    @abstractmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the frozen reward from ``path`` in ``dtype`` onto ``device``.

        ``path`` is None where ``needs_path`` is False, and where ``default_path`` is to be taken.

        Raises:
            ValueError: ``path`` is not what this reward takes.
        """

    @classmethod
    def check_path(cls, path: str | None) -> None:
        """Refuse a path this reward cannot load, without loading weights: the driver calls it before any actor starts.

        Raises:
            ValueError: a path or a file is missing, or a path is given where none is taken; the message says what to
                give.
        """
        if cls.needs_path and not (path or cls.default_path):
            raise ValueError(f"reward {cls.name!r} needs reward.path: a checkpoint directory or hub id; got {path!r}")
        if not cls.needs_path and path is not None:
            raise ValueError(f"reward {cls.name!r} has no weights: remove reward.path ({path!r})")

    @classmethod
    def check_prompts(cls, prompts: Sequence[str]) -> None:
        """Refuse prompts that this reward has nothing to say about; most rewards take any.

        Raises:
            ValueError: there is no prompt, or one that the reward cannot judge, which the message names.
        """
        if not prompts:
            raise ValueError(f"reward {cls.name!r} has no prompt to score images by")

    @classmethod
    def path_or_default(cls, path: str | None) -> str:
        """``path``, or ``default_path`` where none is given; call it after ``check_path``."""
        found = path or cls.default_path
        assert found is not None, f"reward {cls.name!r} was given no path and has no default"
        return found

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (B, 3, H, W), floating point in [0, 1], against ``prompts`` (B of them).

        Returns:
            (B,) float32 on the device of the reward; attached to the graph of ``images`` where ``differentiable``.
        """

    def score_at(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """Score images that the network predicted at the diffusion times ``timesteps`` (B,) int64, 0 = finished.

        As :meth:`score`, whatever the time; a :class:`StepAwareReward` alone makes something of it.
        """
        return self.score(images, prompts)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) of ``images`` (B, 3, H, W) in [0, 1], in which alike images lie close; see ``embeds``.

        Raises:
            NotImplementedError: the reward has no such space.
        """
        raise NotImplementedError(f"reward {self.name!r} embeds no images")

    def score_aspects(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (B, 3, H, W) by each of A ``aspects``.

        Returns:
            (B, A) float32, NaN where the prompt says nothing about the aspect.
        """
        return images.new_empty(len(prompts), 0)


class StepAwareReward(Reward):
    """A reward that is told how noisy the latents were from which the network predicted an image."""

    @abstractmethod
    def score_at(self, images: Tensor, prompts: Sequence[str], timesteps: Tensor) -> Tensor:
        """Score ``images`` (B, 3, H, W) predicted at the diffusion times ``timesteps`` (B,) int64, 0 = finished.

        Returns:
            (B,) float32, as :meth:`Reward.score`.
        """

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score finished ``images`` (B, 3, H, W): :meth:`score_at` at time 0."""
        return self.score_at(images, prompts, torch.zeros(len(prompts), dtype=torch.int64))
