"""The units of several rewards over a run: declared ones, or measured on the finished images of past iterations."""

from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.reward_components import component_moments
from pipeline.rewards import reward_scale
from pipeline.weighting import Moments, Normalisation

STATE = "reward_moments"


def declared_normalisation(settings: RunSettings) -> Normalisation | None:
    """Weights and scales as they are configured or declared, uncentred; None for one reward, which stays as it is."""
    rewards = settings.rewards
    if len(rewards) == 1:
        return None
    return Normalisation(
        weights=tuple(reward.weight for reward in rewards),
        centres=(0.0,) * len(rewards),
        scales=tuple(map(reward_scale, rewards)),
    )


class RewardNormaliser:
    """What the learner publishes with the weights of every iteration, so that all workers use the same numbers."""

    def __init__(self, settings: RunSettings) -> None:
        """Begin with the declared scales."""
        self._declared = declared_normalisation(settings)
        self._labels = settings.trained_reward_labels
        self._columns = settings.method.reward_columns
        self._running = settings.reward_normalisation == "running"
        self._moments = Moments.none(len(self._labels))

    @property
    def current(self) -> Normalisation | None:
        """The normalisation of the iteration that comes next; None where there is one reward."""
        if self._declared is None or not self._running:
            return self._declared
        return self._moments.normalisation(self._declared)

    def observe(self, table: pa.Table) -> dict[str, Any]:
        """Take in this worker's records of an iteration, once.

        Returns:
            for each of several rewards the mean of its raw scores over the finished images of all workers, and with
            running statistics the centre and scale that go with the policy which learns from them. Records of an older
            policy were ranked with those of the iteration before.
        """
        used = self.current
        if used is None:
            return {}
        moments = component_moments(table, self._columns, self._labels)
        metrics = {f"reward/{label}": mean for label, mean in zip(self._labels, moments.means, strict=True)}
        if self._running:
            for label, centre, scale in zip(self._labels, used.centres, used.scales, strict=True):
                metrics |= {f"reward_centre/{label}": centre, f"reward_scale/{label}": scale}
            self._moments = self._moments.joined(moments)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Everything to resume with, for safetensors, in float64; nothing without running statistics."""
        if not self._running:
            return {}
        moments = self._moments
        return {
            f"{STATE}.count": torch.tensor(moments.count, dtype=torch.float64),
            f"{STATE}.means": torch.tensor(moments.means, dtype=torch.float64),
            f"{STATE}.squares": torch.tensor(moments.squares, dtype=torch.float64),
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit; other entries of `tensors` are left alone."""
        if self._running:
            means, squares = (tuple(tensors[f"{STATE}.{name}"].tolist()) for name in ("means", "squares"))
            self._moments = Moments(tensors[f"{STATE}.count"].item(), means, squares)
