"""A method of one's own: every step that a trajectory took becomes likelier, by the weight of its final reward.

Reward-weighted regression (the likelihood of arXiv:2302.12192, of a sampler's steps): no pairs and no reference. Copy
this file into the folder that the job is started in and name it in the configuration:

    method:
      name: reward_weighted:RewardWeighted
      temperature: 0.5
"""

from typing import Any, ClassVar

import pyarrow as pa
import torch
from pydantic import PositiveFloat
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.diagnostics import column_means
from pipeline.method_settings import MethodSettings
from pipeline.methods.base import LossTerms, Method
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch
from pipeline.records import RecordRows, latent_type, record_rows, step_records
from pipeline.reduction import gather_over_workers
from pipeline.rewards import training_scale
from pipeline.scoring import AsyncScorer
from pipeline.trajectory_work import TrajectoryWork
from pipeline.transitions import gaussian_log_prob


class RewardWeightedSettings(MethodSettings):
    """Reward-weighted regression of every step."""

    default_learning_rate: ClassVar[float] = 3e-4
    paper: ClassVar[str] = "arXiv:2302.12192"
    reward_columns: ClassVar[tuple[str, ...]] = ("reward",)

    temperature: PositiveFloat = 1.0
    """Two trajectories whose rewards differ by this, in units of the reward's scale, weigh e to 1."""

    @property
    def title(self) -> str:
        """What tables and charts call the method."""
        return "Reward-weighted"

    def trained_grid_steps(self, num_steps: int) -> tuple[int, ...]:
        """Every step."""
        return tuple(range(num_steps))

    def work(self, num_steps: int) -> TrajectoryWork:
        """One call for each step, and one forward and backward; x_t and x_s are recorded."""
        return TrajectoryWork(
            policy_calls=num_steps, decoded_images=1, learner_calls=num_steps, record_latents=2 * num_steps
        )


class RewardWeighted(Method):
    """Weights are softmaxes over an iteration's trajectories, times their number: 1 on average."""

    settings_class: ClassVar[type[MethodSettings]] = RewardWeightedSettings
    diagnostic_names: ClassVar[tuple[str, ...]] = ("weight", "log_prob")

    def __init__(self, settings: RunSettings) -> None:
        """Take the settings of the run."""
        super().__init__(settings)
        assert isinstance(settings.method, RewardWeightedSettings)
        self.temperature = settings.method.temperature * training_scale(settings)

    async def collect(self, policy: Policy, scorer: AsyncScorer, batch: SampleBatch, policy_version: int) -> pa.Table:
        """Denoise a batch of B prompts and record every step, with the reward of the finished image."""
        transition, shape, prompts = policy.transition, policy.latent_shape, list(batch.prompts)
        noise = SampleNoise(self.run.seed, batch.iteration, batch.samples)
        latents = [noise.draw(shape, INITIAL_STEP).to(policy.device)]  # each (B, C, H, W)
        for step in range(transition.num_steps):
            mean, std = transition.mean_std(policy.predict(latents[-1], step, prompts), latents[-1], step)
            latents.append(mean + std * noise.draw(shape, step).to(policy.device))
        reward = await scorer.score(latents[-1], prompts, timestep=0)  # (B,)
        fields = [
            *(pa.field(name, latent_type(shape), nullable=False) for name in ("x_t", "x_s")),
            pa.field("reward", pa.float32(), nullable=False),
        ]
        tables = []
        for step in range(transition.num_steps):
            values: dict[str, Tensor | None] = {"x_t": latents[step], "x_s": latents[step + 1], "reward": reward}
            tables.append(step_records(values, fields, batch, step, step, transition.num_steps, policy_version))
        return pa.concat_tables(tables).combine_chunks()

    def loss(self, policy: Policy, rows: RecordRows) -> LossTerms:
        """-weight log p(x_s | x_t) of N steps."""
        x_t, x_s, weight = (rows[name].to(policy.device) for name in ("x_t", "x_s", "weight"))
        mean, std = policy.transition.mean_std(policy.forward(x_t, rows["step"], rows.prompts), x_t, rows["step"])
        log_prob = gaussian_log_prob(x_s, mean, std, "mean")
        return LossTerms(-weight * log_prob, {"weight": weight, "log_prob": log_prob.detach()})

    def rollout_metrics(self, table: pa.Table) -> dict[str, Any]:
        """reward, the mean reward of the finished images."""
        return column_means({"reward": table["reward"]})

    def trainable_rows(self, table: pa.Table) -> RecordRows:
        """All records, with the weight of their trajectory among those that all learner workers hold."""
        rows = record_rows(table)
        own = dict(zip(rows["sample"].tolist(), rows["reward"].tolist(), strict=True))
        rewards = {sample: reward for worker in gather_over_workers(own) for sample, reward in worker.items()}
        weights = reward_weights(rewards, self.temperature)
        return rows.with_column("weight", torch.tensor([weights[sample] for sample in rows["sample"].tolist()]))


def reward_weights(rewards: dict[int, float], temperature: float) -> dict[int, float]:
    """The weights of samples by their rewards, whichever worker has which: a softmax, 1 on average."""
    samples = sorted(rewards)
    logits = torch.tensor([rewards[sample] for sample in samples]) / temperature
    return dict(zip(samples, (torch.softmax(logits, 0) * len(samples)).tolist(), strict=True))
