"""TailorPO and TailorPO-G (arXiv:2502.01667): preferences between two draws from the same x_t, ranked step by step."""

from typing import Any, ClassVar

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.guidance import guidance_schedule, guide_winner
from pipeline.method_settings import MethodSettings, TailorPOSettings
from pipeline.methods.base import LossTerms, Method
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.preference_loss import (
    clamped_margin,
    clamped_share,
    drift,
    implicit_accuracy,
    log_ratio,
    preference_margin,
)
from pipeline.prompts import SampleBatch
from pipeline.records import RecordRows
from pipeline.rewards import training_scale
from pipeline.scoring import AsyncScorer
from pipeline.step_diagnostics import rollout_diagnostics
from pipeline.step_preferences import LATENT_COLUMNS, StepPreferences, records_table, trainable_pairs
from pipeline.transitions import Reduction, gaussian_log_prob

STEP_PREFERENCE_DIAGNOSTICS = ("implicit_accuracy", "margin", "clamped_ratios", "drift")


class TailorPO(Method):
    """TailorPO; with `method.guidance` in the configuration, TailorPO-G."""

    settings_class: ClassVar[type[MethodSettings]] = TailorPOSettings
    diagnostic_names: ClassVar[tuple[str, ...]] = STEP_PREFERENCE_DIAGNOSTICS

    def __init__(self, settings: RunSettings) -> None:
        """Take the settings of the run."""
        super().__init__(settings)
        assert isinstance(settings.method, TailorPOSettings)
        self.settings = settings.method
        self.reward_scale = training_scale(settings)

    async def collect(self, policy: Policy, scorer: AsyncScorer, batch: SampleBatch, policy_version: int) -> pa.Table:
        """Denoise a batch of prompts and record a preference at every trained step."""
        return await collect(policy, scorer, batch, self.settings, self.run.seed, self.reward_scale, policy_version)

    def loss(self, policy: Policy, rows: RecordRows) -> LossTerms:
        """Eq. 10 of N pairs, by one call of the network at x_t."""
        settings = self.settings
        return step_preference_terms(policy, rows, settings.beta, settings.reduction, settings.ratio_clip)

    def rollout_metrics(self, table: pa.Table) -> dict[str, Any]:
        """See `pipeline.step_diagnostics`."""
        return rollout_diagnostics(table, self.run.trained_grid_steps)

    def trainable_rows(self, table: pa.Table) -> RecordRows:
        """All pairs but ties."""
        return trainable_pairs(table)


async def collect(
    policy: Policy,
    scorer: AsyncScorer,
    batch: SampleBatch,
    settings: TailorPOSettings,
    run_seed: int,
    reward_scale: float,
    policy_version: int,
) -> pa.Table:
    """Denoise a batch of prompts and record a preference at every trained step (the paper's Algorithm 1).

    At T = 20 with K = 5 trained steps a trajectory costs T + K = 25 policy calls (the winner's output at the next step
    was already computed to rank it) and K reference calls; guidance adds K forward-and-backward and K forward calls.
    It decodes and scores 2K candidates and, so that the run can be followed, the finished image. Guidance adds the
    winners, once more for their gradients since reward actors keep nothing, and the moved winners: 4K.

    Returns:
        A table of B * K records, see `pipeline.records`.
    """
    prompts = list(batch.prompts)
    noise = SampleNoise(run_seed, batch.iteration, batch.samples)
    transition, shape = policy.transition, policy.latent_shape
    trained = trained_strengths(settings, transition.num_steps)
    recorded = []

    x_t = noise.draw(shape, INITIAL_STEP).to(policy.device)
    output = policy.predict(x_t, 0, prompts)
    for step in range(transition.num_steps):
        mean, std = transition.mean_std(output, x_t, step)
        if step in trained:
            candidates = [mean + std * noise.draw(shape, step, draw).to(policy.device) for draw in (0, 1)]
            preferences, x_t, output = await _prefer(
                policy, scorer, prompts, x_t, candidates, step, std, settings, trained[step], reward_scale
            )
            recorded.append(preferences)
        else:
            x_t = mean + std * noise.draw(shape, step).to(policy.device)
            if step + 1 < transition.num_steps:
                output = policy.predict(x_t, step + 1, prompts)
    final_reward = await scorer.score(x_t, prompts, timestep=0)
    return records_table(recorded, batch, final_reward, policy_version)


def trained_strengths(settings: TailorPOSettings, num_steps: int) -> dict[int, float]:
    """Grid index of every trained step, noisy to clean, with its guidance strength (0 without guidance)."""
    steps = [num_steps - remaining for remaining in settings.trained_steps]
    if settings.guidance is None:
        return dict.fromkeys(steps, 0.0)
    schedule = guidance_schedule(len(steps), settings.guidance.eta_min, settings.guidance.eta_max)
    return dict(zip(steps, schedule.tolist(), strict=True))


async def _prefer(
    policy: Policy,
    scorer: AsyncScorer,
    prompts: list[str],
    x_t: Tensor,
    candidates: list[Tensor],
    step: int,
    std: Tensor,
    settings: TailorPOSettings,
    strength: float,
    reward_scale: float,
) -> tuple[StepPreferences, Tensor, Tensor]:
    """Rank two candidates, guide the winner, and return the preference, the winner and the network's output at it."""
    transition, count = policy.transition, len(prompts)
    reference_output = policy.predict_reference(x_t, step, prompts)
    reference_mean, _ = transition.mean_std(reference_output, x_t, step)

    pair = torch.cat(candidates)  # (2B, C, H, W)
    pair_prompts = prompts * 2
    pair_output = policy.predict(pair, step + 1, pair_prompts)
    pair_x0 = transition.predict_x0(pair_output, pair, step + 1)
    scores = await scorer.score(pair_x0, pair_prompts, transition.timestep(step + 1))  # (2B,) on the CPU

    first_wins = scores[:count] >= scores[count:]
    winner_index = torch.where(first_wins, 0, count) + torch.arange(count)
    loser_index = torch.where(first_wins, count, 0) + torch.arange(count)
    winner, loser, output = pair[winner_index], pair[loser_index], pair_output[winner_index]
    ranked_score = winner_score = scores[winner_index]
    accepted = move = None
    if settings.guidance is not None:
        guided = await guide_winner(
            policy,
            scorer,
            winner,
            output,
            ranked_score,
            prompts,
            step + 1,
            std,
            strength,
            settings.guidance.delta,
            reward_scale,
        )
        winner, output, winner_score = guided.latents, guided.model_output, guided.scores
        accepted, move = guided.accepted, guided.move

    preferences = StepPreferences(
        step=step,
        x_t=x_t,
        winner=winner,
        loser=loser,
        reference_mean=reference_mean,
        winner_score=winner_score,
        loser_score=scores[loser_index],
        ranked_winner_score=ranked_score,
        reference_log_prob_winner=gaussian_log_prob(winner, reference_mean, std, settings.reduction),
        reference_log_prob_loser=gaussian_log_prob(loser, reference_mean, std, settings.reduction),
        tie=ranked_score - scores[loser_index] <= settings.min_gap,
        guidance_accepted=accepted,
        guidance_move=move,
    )
    return preferences, winner, output


def step_preference_terms(
    policy: Policy, rows: RecordRows, beta: float, reduction: Reduction, ratio_clip: float | None
) -> LossTerms:
    """`tailorpo_loss` of N step-wise preferences, by one call of the network at x_t, and what to tell of each."""
    x_t, winner, loser, reference_mean = (rows[name].to(policy.device) for name in LATENT_COLUMNS)
    output = policy.forward(x_t, rows["step"], rows.prompts)
    mean, std = policy.transition.mean_std(output, x_t, rows["step"])
    losses = tailorpo_loss(mean, reference_mean, winner, loser, std, beta, reduction, ratio_clip)
    with torch.no_grad():
        margins = preference_margin(mean, reference_mean, winner, loser, std, reduction)
        ratios = [log_ratio(mean, reference_mean, sample, std, reduction) for sample in (winner, loser)]
        diagnostics = {
            "implicit_accuracy": implicit_accuracy(margins),
            "margin": margins,
            "clamped_ratios": clamped_share(ratios, ratio_clip),
            "drift": drift(mean, reference_mean, std, reduction),
        }
    return LossTerms(losses, diagnostics)


def tailorpo_loss(
    policy_mean: Tensor,
    reference_mean: Tensor,
    winner: Tensor,
    loser: Tensor,
    std: Tensor | float,
    beta: float = 0.1,
    reduction: Reduction = "mean",
    ratio_clip: float | None = None,
) -> Tensor:
    """-log sigmoid(beta (log-ratio of the winner - log-ratio of the loser)), (B,) float32, not averaged (Eq. 10).

    Args:
        policy_mean, reference_mean, winner, loser: (B, C, H, W).
        std: standard deviation of the step, a scalar or (B,).
        beta: strength of the implicit KL penalty; means nothing without `reduction`.
        reduction: over C, H, W, of the log-probabilities.
        ratio_clip: clamp each ratio pi_theta / pi_ref to [1 - x, 1 + x], as D3PO does; None does not clamp.
    """
    if ratio_clip is None:
        margin = preference_margin(policy_mean, reference_mean, winner, loser, std, reduction)
    else:
        ratios = [log_ratio(policy_mean, reference_mean, sample, std, reduction) for sample in (winner, loser)]
        margin = clamped_margin(ratios[0], ratios[1], ratio_clip)
    return -F.logsigmoid(beta * margin)
