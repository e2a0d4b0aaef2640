"""RewardActor: holds the decoder and the reward models; scores latents, returns gradients, decodes images.

Whoever holds a handle of an actor imports the module of its class. The fleet does and needs no torch, so nothing at the
top of this module imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.logs import log_in_actor
from actors.watchdog import ends_within
from pipeline.config import RewardSettings
from pipeline.evaluation.measured import ImageMeasures
from pipeline.redacted_errors import errors_without_secrets

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.reward_models import ScoringSettings

Array = NDArray[np.float32]


class RewardActor:
    """A synchronous actor: one call at a time, in the order of arrival, each batch exactly as it was sent."""

    @errors_without_secrets()
    def __init__(self, settings: ScoringSettings) -> None:
        """Load the decoder and `settings.rewards`; other rewards load when first asked for."""
        log_in_actor("reward")
        with ends_within(settings.reward_actors.timeout_seconds):
            import torch

            from pipeline.reward_models import RewardModels

            torch.set_num_threads(settings.reward_actors.threads)
            self.models = RewardModels(settings)

    def ready(self) -> bool:
        """True once the models are loaded; the fleet leases the actor from then on."""
        return True

    @errors_without_secrets()
    def score(self, latents: Array, prompts: Sequence[str], timestep: int) -> Array:
        """Latents (B, C, H, W) float32, predicted at the diffusion time `timestep` -> rewards (B,) float32.

        Raises:
            RewardError: a score is not finite, or there are not B of them.
        """
        return self.models.scorer.score(_to_tensor(latents), prompts, timestep).numpy()

    @errors_without_secrets()
    def score_with_gradient(self, latents: Array, prompts: Sequence[str], timestep: int) -> tuple[Array, Array]:
        """`score`, and d reward / d latents (B, C, H, W) float32.

        Raises:
            RewardError: as `score`.
        """
        scores, gradients = self.models.scorer.score_with_gradient(_to_tensor(latents), prompts, timestep)
        return scores.numpy(), gradients.numpy()

    @errors_without_secrets()
    def score_each(self, latents: Array, prompts: Sequence[str], timestep: int) -> Array:
        """`score`, raw and of each of several rewards, (K, B) float32.

        Raises:
            RewardError: as `score`.
        """
        return self.models.reward_set.score_each(_to_tensor(latents), prompts, timestep).numpy()

    @errors_without_secrets()
    def score_sum_with_gradient(
        self, latents: Array, prompts: Sequence[str], timestep: int, coefficients: Sequence[float]
    ) -> tuple[Array, Array]:
        """Sum coefficient_k r_k over the differentiable ones of K rewards, (B,), and its gradient (B, C, H, W).

        Raises:
            RewardError: as `score`.
        """
        rewards = self.models.reward_set
        sums, gradients = rewards.score_sum_with_gradient(_to_tensor(latents), prompts, timestep, coefficients)
        return sums.numpy(), gradients.numpy()

    @errors_without_secrets()
    def try_loading(self, rewards: Sequence[RewardSettings]) -> None:
        """Load rewards that are first asked for at the end of a run, and let go of them again.

        Raises:
            ValueError, OSError, RuntimeError: one cannot be loaded.
        """
        self.models.try_loading(rewards)

    @errors_without_secrets()
    def evaluate(
        self,
        latents: Array,
        prompts: Sequence[str],
        rewards: Sequence[RewardSettings],
        embedder: RewardSettings | None = None,
    ) -> ImageMeasures:
        """Finished images, what several rewards make of them, and their statistics.

        Args:
            embedder: a reward that `embeds`, in whose space of images they are embedded too.

        Raises:
            RewardError: as `score`.
        """
        return self.models.evaluate(_to_tensor(latents), prompts, rewards, embedder)


def _to_tensor(latents: Array) -> Tensor:
    import torch

    # A copy, because what comes out of the object store is read-only.
    return torch.from_numpy(np.array(latents))
