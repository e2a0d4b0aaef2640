"""Reward models by name. Modules are imported on first use: naming a reward costs no heavy import."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import torch

from pipeline.config import RewardSettings, RunSettings
from pipeline.own_classes import is_own
from pipeline.rewards.base import Reward
from pipeline.rewards.own import own_reward_class

__all__ = ["REWARDS", "Reward", "aspect_labels", "load_reward", "reward_class", "reward_scale", "training_scale"]

REWARDS: dict[str, tuple[str, str]] = {
    "jpeg_compressibility": ("pipeline.rewards.jpeg", "JpegCompressibility"),
    "jpeg_incompressibility": ("pipeline.rewards.jpeg", "JpegIncompressibility"),
    "clip": ("pipeline.rewards.clip", "ClipReward"),
    "clip_score": ("pipeline.rewards.clip_score", "ClipScore"),
    "pickscore": ("pipeline.rewards.pickscore", "PickScore"),
    "hpsv2": ("pipeline.rewards.hpsv2", "HPSv2"),
    "hpsv2.1": ("pipeline.rewards.hpsv2", "HPSv21"),
    "aesthetic": ("pipeline.rewards.aesthetic", "Aesthetic"),
    "image_reward": ("pipeline.rewards.image_reward", "ImageReward"),
    "spo_step_aware": ("pipeline.rewards.spo_step_aware", "SpoStepAware"),
    "http": ("pipeline.rewards.remote", "HttpReward"),
    "scene_judge": ("pipeline.rewards.scene_judge", "SceneJudge"),
}
"""Name of each reward -> (module, class)."""


def reward_class(name: str) -> type[Reward]:
    """Return the class registered under ``name``, or the one that ``name`` gives as ``module:Class``.

    Raises:
        ValueError: no reward has that name; the message gives the nearest one and the whole list. Or ``module:Class``
            cannot be imported or is no complete reward.
    """
    if is_own(name):
        return own_reward_class(name)
    if name not in REWARDS:
        nearest = get_close_matches(name, REWARDS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown reward {name!r}; did you mean {nearest!r}? Known: {', '.join(sorted(REWARDS))}, "
            "and module:Class for one of your own"
        )
    module, class_name = REWARDS[name]
    found = getattr(import_module(module), class_name)
    assert issubclass(found, Reward), f"{module}.{class_name} is no reward"
    assert found.name == name, f"{module}.{class_name} calls itself {found.name!r}, not {name!r}"
    return found


def load_reward(
    name: str, path: str | None, device: torch.device, dtype: torch.dtype, scale: float | None = None
) -> Reward:
    """Load the reward ``name``; None for ``path`` or ``scale`` keeps the one that the reward declares.

    Raises:
        ValueError: unknown name, unusable path, or a scale that is not positive.
    """
    if scale is not None and not scale > 0:
        raise ValueError(f"reward.scale must be positive, got {scale}")
    found = reward_class(name)
    found.check_path(path)
    reward = found.load(path, device, dtype)
    if scale is not None:
        reward.scale = scale
    return reward


def aspect_labels(rewards: Sequence[RewardSettings], labels: Sequence[str]) -> tuple[str, ...]:
    """What the aspects of all ``rewards`` are called in tables, each beside its reward's own label."""
    return tuple(
        f"{label}: {aspect}"
        for reward, label in zip(rewards, labels, strict=True)
        for aspect in reward_class(reward.name).aspects
    )


def reward_scale(settings: RewardSettings) -> float:
    """One unit of a reward in guidance and in sums: the configured scale, else the declared one."""
    return settings.scale if settings.scale is not None else reward_class(settings.name).scale


def training_scale(settings: RunSettings) -> float:
    """One unit of what a run is trained on: that of its reward, or 1 where it is a sum of rewards over their units."""
    return reward_scale(settings.rewards[0]) if len(settings.rewards) == 1 else 1.0
