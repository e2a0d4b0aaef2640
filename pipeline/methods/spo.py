"""SPO (arXiv:2406.04314): step-wise preferences within a pool of candidates, of which any continues."""

from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.method_settings import MethodSettings, SPOSettings
from pipeline.methods.base import LossTerms, Method
from pipeline.methods.tailorpo import STEP_PREFERENCE_DIAGNOSTICS, step_preference_terms
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch
from pipeline.records import RecordRows
from pipeline.rewards import training_scale
from pipeline.scoring import AsyncScorer
from pipeline.step_diagnostics import rollout_diagnostics
from pipeline.step_preferences import StepPreferences, records_table, trainable_pairs
from pipeline.transitions import gaussian_log_prob


class SPO(Method):
    """Best against worst of a pool drawn from one x_t; a random member, not the winner, continues."""

    settings_class: ClassVar[type[MethodSettings]] = SPOSettings
    diagnostic_names: ClassVar[tuple[str, ...]] = STEP_PREFERENCE_DIAGNOSTICS

    def __init__(self, settings: RunSettings) -> None:
        """Take the settings of the run."""
        super().__init__(settings)
        assert isinstance(settings.method, SPOSettings)
        self.settings = settings.method
        self.reward_scale = training_scale(settings)

    async def collect(self, policy: Policy, scorer: AsyncScorer, batch: SampleBatch, policy_version: int) -> pa.Table:
        """Denoise a batch of prompts; from the plain steps on, rank a pool at every step.

        The candidates of the last step are finished images, so the reward of the one chosen is the trajectory's.
        """
        transition, shape, prompts = policy.transition, policy.latent_shape, list(batch.prompts)
        noise = SampleNoise(self.run.seed, batch.iteration, batch.samples)
        recorded = []
        x_t = noise.draw(shape, INITIAL_STEP).to(policy.device)
        output = policy.predict(x_t, 0, prompts)
        chosen_score = torch.empty(0)
        for step in range(transition.num_steps):
            mean, std = transition.mean_std(output, x_t, step)
            if step < self.settings.plain_steps:
                x_t = mean + std * noise.draw(shape, step).to(policy.device)
                output = policy.predict(x_t, step + 1, prompts)
                continue
            size = self.settings.pool_size
            draws = torch.stack([noise.draw(shape, step, draw) for draw in range(size)]).to(policy.device)
            pool = mean + std * draws  # (P, B, C, H, W)
            scores, outputs = await self._score_pool(policy, scorer, pool, step + 1, prompts)
            recorded.append(self._preferences(policy, x_t, prompts, step, std, pool, scores))
            chosen, samples = noise.choose(size, step), torch.arange(len(prompts))
            x_t, chosen_score = pool[chosen, samples], scores[chosen, samples]
            if outputs is not None:
                output = outputs[chosen, samples]
        return records_table(recorded, batch, chosen_score, policy_version)

    async def _score_pool(
        self, policy: Policy, scorer: AsyncScorer, pool: Tensor, step: int, prompts: list[str]
    ) -> tuple[Tensor, Tensor | None]:
        """Step-wise rewards (P, B) on the CPU, and the network's outputs (P, B, C, H, W) unless the pool is clean."""
        size, flat, all_prompts = len(pool), pool.flatten(0, 1), prompts * len(pool)
        if step == policy.transition.num_steps:
            return (await scorer.score(flat, all_prompts, timestep=0)).unflatten(0, (size, -1)), None
        outputs = policy.predict(flat, step, all_prompts)
        x0 = policy.transition.predict_x0(outputs, flat, step)
        scores = await scorer.score(x0, all_prompts, policy.transition.timestep(step))
        return scores.unflatten(0, (size, -1)), outputs.unflatten(0, (size, -1))

    def _preferences(
        self, policy: Policy, x_t: Tensor, prompts: list[str], step: int, std: Tensor, pool: Tensor, scores: Tensor
    ) -> StepPreferences:
        samples, reduction = torch.arange(len(prompts)), self.settings.reduction
        best, worst = scores.argmax(dim=0), scores.argmin(dim=0)
        winner, loser = pool[best, samples], pool[worst, samples]
        winner_score, loser_score = scores[best, samples], scores[worst, samples]
        reference_mean, _ = policy.transition.mean_std(policy.predict_reference(x_t, step, prompts), x_t, step)
        # The softmax of two scores differs by tanh of half their gap.
        probability_gap = ((winner_score - loser_score) / self.reward_scale / 2).tanh()
        return StepPreferences(
            step=step,
            x_t=x_t,
            winner=winner,
            loser=loser,
            reference_mean=reference_mean,
            winner_score=winner_score,
            loser_score=loser_score,
            ranked_winner_score=winner_score,
            reference_log_prob_winner=gaussian_log_prob(winner, reference_mean, std, reduction),
            reference_log_prob_loser=gaussian_log_prob(loser, reference_mean, std, reduction),
            tie=probability_gap <= self.settings.min_probability_gap,
        )

    def loss(self, policy: Policy, rows: RecordRows) -> LossTerms:
        """-log sigmoid(beta (clamped log-ratio of the best - that of the worst))."""
        settings = self.settings
        return step_preference_terms(policy, rows, settings.beta, settings.reduction, settings.ratio_clip)

    def rollout_metrics(self, table: pa.Table) -> dict[str, Any]:
        """See `pipeline.step_diagnostics`."""
        return rollout_diagnostics(table, self.run.trained_grid_steps)

    def trainable_rows(self, table: pa.Table) -> RecordRows:
        """All pairs whose scores differ by enough."""
        return trainable_pairs(table)
