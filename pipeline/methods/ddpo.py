"""DDPO (arXiv:2305.13301): a clipped policy gradient on every step, with the final reward normalised per prompt."""

import math
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.diagnostics import column_means
from pipeline.method_settings import DDPOSettings, MethodSettings
from pipeline.methods.base import LossTerms, Method
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.prompt_statistics import PromptRewardHistory
from pipeline.prompts import SampleBatch
from pipeline.records import RecordRows, latent_type, record_rows, step_records
from pipeline.reduction import gather_over_workers
from pipeline.scoring import AsyncScorer
from pipeline.transitions import gaussian_log_prob


class DDPO(Method):
    """Proximal policy optimisation of the denoising chain; no reference, no pairs."""

    settings_class: ClassVar[type[MethodSettings]] = DDPOSettings
    diagnostic_names: ClassVar[tuple[str, ...]] = ("clipped_share", "log_ratio", "squared_log_ratio")

    def __init__(self, settings: RunSettings) -> None:
        """Take the settings of the run."""
        super().__init__(settings)
        assert isinstance(settings.method, DDPOSettings)
        self.settings = settings.method
        self.history = PromptRewardHistory(settings.method.prompt_history, settings.method.prompt_history_min)

    async def collect(self, policy: Policy, scorer: AsyncScorer, batch: SampleBatch, policy_version: int) -> pa.Table:
        """Denoise a batch of prompts and record every step with the probability it had."""
        transition, shape, prompts = policy.transition, policy.latent_shape, list(batch.prompts)
        noise = SampleNoise(self.run.seed, batch.iteration, batch.samples)
        x_t = noise.draw(shape, INITIAL_STEP).to(policy.device)
        visited: list[dict[str, Tensor | None]] = []
        for step in range(transition.num_steps):
            mean, std = transition.mean_std(policy.predict(x_t, step, prompts), x_t, step)
            x_s = mean + std * noise.draw(shape, step).to(policy.device)
            visited.append({"x_t": x_t, "x_s": x_s, "log_prob": self._log_prob(x_s, mean, std)})
            x_t = x_s
        reward = await scorer.score(x_t, prompts, timestep=0)  # (B,)
        latent = latent_type(shape)
        fields = [
            pa.field("x_t", latent, nullable=False),
            pa.field("x_s", latent, nullable=False),
            pa.field("log_prob", pa.float32(), nullable=False),
            pa.field("reward", pa.float32(), nullable=False),
        ]
        tables = [
            step_records(values | {"reward": reward}, fields, batch, step, step, len(visited), policy_version)
            for step, values in enumerate(visited)
        ]
        return pa.concat_tables(tables).combine_chunks()

    def loss(self, policy: Policy, rows: RecordRows) -> LossTerms:
        """The clipped surrogate of N steps."""
        x_t, x_s, old = (rows[name].to(policy.device) for name in ("x_t", "x_s", "log_prob"))
        output = policy.forward(x_t, rows["step"], rows.prompts)
        mean, std = policy.transition.mean_std(output, x_t, rows["step"])
        log_ratios = self._log_prob(x_s, mean, std) - old
        clip = self.settings.ratio_clip
        losses = ddpo_loss(log_ratios, rows["advantage"].to(policy.device), clip)
        told = log_ratios.detach()
        clipped = (told < math.log1p(-clip)) | (told > math.log1p(clip))
        diagnostics = {"clipped_share": clipped.float(), "log_ratio": told, "squared_log_ratio": told**2}
        return LossTerms(losses, diagnostics)

    def rollout_metrics(self, table: pa.Table) -> dict[str, Any]:
        """reward, the mean reward of the finished images."""
        return column_means({"reward": table["reward"]})

    def trainable_rows(self, table: pa.Table) -> RecordRows:
        """All records, with the advantage of their trajectory."""
        rows = record_rows(table)
        ends = (rows["step"] == 0).tolist()
        own = [
            (sample, prompt, reward)
            for sample, prompt, reward, first in zip(
                rows["sample"].tolist(), rows.prompts, rows["reward"].tolist(), ends, strict=True
            )
            if first
        ]
        samples = sorted(sample for worker in gather_over_workers(own) for sample in worker)
        numbers, prompts, rewards = zip(*samples, strict=True)
        advantages = self.history.advantages(prompts, rewards)
        clip = self.settings.advantage_clip
        of_sample = {
            number: min(max(advantage, -clip), clip) for number, advantage in zip(numbers, advantages, strict=True)
        }
        return rows.with_column("advantage", torch.tensor([of_sample[sample] for sample in rows["sample"].tolist()]))

    def state(self) -> dict[str, Any]:
        """The rewards of every prompt."""
        return self.history.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue with the rewards of every prompt."""
        self.history.load_state(state)

    def _log_prob(self, x_s: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return gaussian_log_prob(x_s, mean, std, self.settings.reduction)


def ddpo_loss(log_ratios: Tensor, advantages: Tensor, ratio_clip: float) -> Tensor:
    """-min(r A, clip(r, 1 - ratio_clip, 1 + ratio_clip) A) for ratios r = exp(log_ratios), (B,)."""
    ratios = log_ratios.exp()
    return torch.maximum(-advantages * ratios, -advantages * ratios.clamp(1 - ratio_clip, 1 + ratio_clip))
