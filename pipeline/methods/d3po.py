"""D3PO (arXiv:2311.13231): of two trajectories of one prompt, every step of the one that ends better is preferred."""

from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.diagnostics import column_means
from pipeline.method_settings import D3POSettings, MethodSettings
from pipeline.methods.base import LossTerms, Method
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.preference_loss import clamped_margin, clamped_share, implicit_accuracy
from pipeline.prompts import SampleBatch
from pipeline.records import RecordRows, latent_type, record_rows, step_records
from pipeline.scoring import AsyncScorer
from pipeline.transitions import gaussian_log_prob

LATENT_COLUMNS = ("winner_x_t", "winner_x_s", "loser_x_t", "loser_x_s")
NUMBER_COLUMNS = ("reference_log_prob_winner", "reference_log_prob_loser", "winner_reward", "loser_reward")


class D3PO(Method):
    """Preferences between whole trajectories that share their first noise alone."""

    settings_class: ClassVar[type[MethodSettings]] = D3POSettings
    diagnostic_names: ClassVar[tuple[str, ...]] = ("implicit_accuracy", "margin", "clamped_ratios")

    def __init__(self, settings: RunSettings) -> None:
        """Take the settings of the run."""
        super().__init__(settings)
        assert isinstance(settings.method, D3POSettings)
        self.settings = settings.method

    async def collect(self, policy: Policy, scorer: AsyncScorer, batch: SampleBatch, policy_version: int) -> pa.Table:
        """Denoise each prompt twice from one x_T with fresh noise at every step, and order the two by final reward."""
        transition, shape, num_steps = policy.transition, policy.latent_shape, policy.transition.num_steps
        noise = SampleNoise(self.run.seed, batch.iteration, batch.samples)
        prompts, reduction = list(batch.prompts) * 2, self.settings.reduction

        def twice(latents: Tensor) -> Tensor:
            return torch.cat([latents, latents])

        first = noise.draw(shape, INITIAL_STEP).to(policy.device)
        x_t, visited, reference_log_probs = twice(first), [], []
        for step in range(num_steps):
            if step == 0:
                output = twice(policy.predict(first, step, batch.prompts))
                reference_output = twice(policy.predict_reference(first, step, batch.prompts))
            else:
                output = policy.predict(x_t, step, prompts)
                reference_output = policy.predict_reference(x_t, step, prompts)
            mean, std = transition.mean_std(output, x_t, step)
            reference_mean, _ = transition.mean_std(reference_output, x_t, step)
            draws = torch.cat([noise.draw(shape, step, draw) for draw in (0, 1)]).to(policy.device)
            x_s = mean + std * draws  # (2B, C, H, W)
            visited.append(x_t.cpu())
            reference_log_probs.append(gaussian_log_prob(x_s, reference_mean, std, reduction).cpu())
            x_t = x_s
        rewards = await scorer.score(x_t, prompts, timestep=0)  # (2B,) on the CPU
        return self._records([*visited, x_t.cpu()], reference_log_probs, rewards, batch, policy_version)

    def loss(self, policy: Policy, rows: RecordRows) -> LossTerms:
        """-log sigmoid(beta (clamped log-ratio of the winner's step - that of the loser's))."""
        settings, steps = self.settings, rows["step"]
        winner_x_t, winner_x_s, loser_x_t, loser_x_s = (rows[name].to(policy.device) for name in LATENT_COLUMNS)
        x_t, both_steps = torch.cat([winner_x_t, loser_x_t]), torch.cat([steps, steps])
        output = policy.forward(x_t, both_steps, rows.prompts * 2)
        mean, std = policy.transition.mean_std(output, x_t, both_steps)
        log_probs = gaussian_log_prob(torch.cat([winner_x_s, loser_x_s]), mean, std, settings.reduction)
        winner, loser = log_probs.chunk(2)
        losses, ratios = d3po_loss(
            winner,
            loser,
            rows["reference_log_prob_winner"].to(policy.device),
            rows["reference_log_prob_loser"].to(policy.device),
            settings.beta,
            settings.ratio_clip,
        )
        margins = (ratios[0] - ratios[1]).detach()
        diagnostics = {
            "implicit_accuracy": implicit_accuracy(margins),
            "margin": margins,
            "clamped_ratios": clamped_share([ratio.detach() for ratio in ratios], settings.ratio_clip),
        }
        return LossTerms(losses, diagnostics)

    def rollout_metrics(self, table: pa.Table) -> dict[str, Any]:
        """reward (mean of both trajectories), reward_gap (winner over loser) and tie_rate."""
        winner, loser = (table[name].to_numpy() for name in ("winner_reward", "loser_reward"))
        return column_means({"reward": (winner + loser) / 2, "reward_gap": winner - loser, "tie_rate": table["tie"]})

    def trainable_rows(self, table: pa.Table) -> RecordRows:
        """All pairs but ties."""
        return record_rows(table.filter(pc.invert(table["tie"])))

    def _records(
        self,
        latents: list[Tensor],
        reference_log_probs: list[Tensor],
        rewards: Tensor,
        batch: SampleBatch,
        policy_version: int,
    ) -> pa.Table:
        count, num_steps = len(batch.samples), len(reference_log_probs)
        first_wins = rewards[:count] >= rewards[count:]
        winner = torch.where(first_wins, 0, count) + torch.arange(count)
        loser = torch.where(first_wins, count, 0) + torch.arange(count)
        tie = rewards[winner] - rewards[loser] <= self.settings.min_gap
        latent = latent_type(latents[0].shape[1:])
        fields = [
            *(pa.field(name, latent, nullable=False) for name in LATENT_COLUMNS),
            *(pa.field(name, pa.float32(), nullable=False) for name in NUMBER_COLUMNS),
            pa.field("tie", pa.bool_(), nullable=False),
        ]
        tables = []
        for step, log_probs in enumerate(reference_log_probs):
            x_t, x_s = latents[step], latents[step + 1]
            values: dict[str, Tensor | None] = {
                "winner_x_t": x_t[winner],
                "winner_x_s": x_s[winner],
                "loser_x_t": x_t[loser],
                "loser_x_s": x_s[loser],
                "reference_log_prob_winner": log_probs[winner],
                "reference_log_prob_loser": log_probs[loser],
                "winner_reward": rewards[winner],
                "loser_reward": rewards[loser],
                "tie": tie,
            }
            tables.append(step_records(values, fields, batch, step, step, num_steps, policy_version))
        return pa.concat_tables(tables).combine_chunks()


def d3po_loss(
    log_prob_winner: Tensor,
    log_prob_loser: Tensor,
    reference_log_prob_winner: Tensor,
    reference_log_prob_loser: Tensor,
    beta: float = 0.1,
    ratio_clip: float | None = 0.1,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The loss (B,) of four log-probabilities (B,), and the log-ratios of winner and loser, (B,) each."""
    ratios = log_prob_winner - reference_log_prob_winner, log_prob_loser - reference_log_prob_loser
    return -F.logsigmoid(beta * clamped_margin(*ratios, ratio_clip)), ratios
