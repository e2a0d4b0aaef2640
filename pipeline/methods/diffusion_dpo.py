"""Diffusion-DPO (arXiv:2311.12908): of two images of one prompt, the preferred one becomes the easier to denoise."""

import math
from typing import Any, ClassVar

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.diagnostics import column_means
from pipeline.encoder import LatentEncoder, decode_images
from pipeline.method_settings import DiffusionDPOSettings, MethodSettings
from pipeline.methods.base import LossTerms, Method
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.preference_loss import implicit_accuracy
from pipeline.prompts import SampleBatch
from pipeline.records import RecordRows, latent_type, step_records
from pipeline.scheduler import load_scheduler
from pipeline.scoring import AsyncScorer
from pipeline.transitions import reduce_latent

REFERENCE_ERRORS = ("reference_error_winner", "reference_error_loser")

# What a sample draws beside latents: its diffusion time, and whether it is learnt from without its prompt.
TIME_CHOICE, EMPTY_PROMPT_CHOICE = 0, 1
EMPTY_PROMPT_GRADATIONS = 10_000

# Records that lie on no step of the sampling grid.
NO_STEP = -1


class DiffusionDPO(Method):
    """Off-line preferences: the batch brings the images, and nothing is sampled or scored."""

    settings_class: ClassVar[type[MethodSettings]] = DiffusionDPOSettings
    diagnostic_names: ClassVar[tuple[str, ...]] = ("implicit_accuracy", "margin", "winner_error", "loser_error")

    def __init__(self, settings: RunSettings) -> None:
        """Take the settings of the run."""
        super().__init__(settings)
        assert isinstance(settings.method, DiffusionDPOSettings)
        self.settings = settings.method
        self.scheduler = load_scheduler(settings.model.path, settings.model.revision)
        self._encoder: LatentEncoder | None = None

    async def collect(self, policy: Policy, scorer: AsyncScorer, batch: SampleBatch, policy_version: int) -> pa.Table:
        """Encode the pairs, draw a time and a noise for each, and record the reference's errors there."""
        assert batch.data is not None, "the batches of an off-line method bring its data"
        noise = SampleNoise(self.run.seed, batch.iteration, batch.samples)
        winner, loser = (
            self._encode(policy, batch.data[name].to_pylist(), noise.draw(policy.latent_shape, INITIAL_STEP, draw))
            for draw, name in enumerate(("preferred", "rejected"))
        )
        timestep = noise.choose(self.scheduler.config.num_train_timesteps, TIME_CHOICE)
        gradation = noise.choose(EMPTY_PROMPT_GRADATIONS, EMPTY_PROMPT_CHOICE)
        values: dict[str, Tensor | None] = {
            "winner": winner,
            "loser": loser,
            "noise": noise.draw(policy.latent_shape, TIME_CHOICE),
            "timestep": timestep,
            "without_prompt": gradation < round(self.settings.empty_prompts * EMPTY_PROMPT_GRADATIONS),
        }
        rows = RecordRows(list(batch.prompts), {name: value for name, value in values.items() if value is not None})
        with torch.no_grad(), policy.reference():
            values |= zip(REFERENCE_ERRORS, self._errors(policy, rows), strict=True)
        latent = latent_type(policy.latent_shape)
        fields = [
            *(pa.field(name, latent, nullable=False) for name in ("winner", "loser", "noise")),
            pa.field("timestep", pa.int32(), nullable=False),
            pa.field("without_prompt", pa.bool_(), nullable=False),
            *(pa.field(name, pa.float32(), nullable=False) for name in REFERENCE_ERRORS),
        ]
        return step_records(values, fields, batch, NO_STEP, 0, 1, policy_version)

    def loss(self, policy: Policy, rows: RecordRows) -> LossTerms:
        """`diffusion_dpo_loss` of N pairs, by one call of the network for their 2N images."""
        winner, loser = self._errors(policy, rows)
        reference_winner, reference_loser = (rows[name].to(policy.device) for name in REFERENCE_ERRORS)
        losses, margins = diffusion_dpo_loss(winner, loser, reference_winner, reference_loser, self.settings.beta)
        told = margins.detach()
        diagnostics = {
            "implicit_accuracy": implicit_accuracy(told),
            "margin": told,
            "winner_error": winner.detach(),
            "loser_error": loser.detach(),
        }
        return LossTerms(losses, diagnostics)

    def rollout_metrics(self, table: pa.Table) -> dict[str, Any]:
        """No reward, since no image is drawn; timestep and reference errors of the pairs."""
        return {"reward": math.nan} | column_means({name: table[name] for name in ("timestep", *REFERENCE_ERRORS)})

    def _encode(self, policy: Policy, images: list[bytes], noise: Tensor) -> Tensor:
        """Encoded images (B) -> latents (B, C, H, W) float32 on the CPU."""
        if self._encoder is None:
            # Here, because the learner makes a method too and encodes nothing.
            model = self.run.model
            self._encoder = LatentEncoder.load(model.path, policy.device, policy.dtype, model.revision)
        size = policy.latent_shape[-1] * self._encoder.factor
        return self._encoder.encode(decode_images(images, size), noise).cpu()

    def _errors(self, policy: Policy, rows: RecordRows) -> tuple[Tensor, Tensor]:
        """Mean squared errors (N,) of the network at the winners and at the losers, in one call for both."""
        clean = torch.cat([rows["winner"], rows["loser"]])  # (2N, C, H, W)
        noise, timestep = (torch.cat([rows[name], rows[name]]) for name in ("noise", "timestep"))
        timestep = timestep.long()
        x_t = self.scheduler.add_noise(clean, noise, timestep).to(policy.device)
        empty = rows["without_prompt"].tolist()
        prompts = ["" if without else prompt for prompt, without in zip(rows.prompts, empty, strict=True)]
        output = policy.forward_conditional(x_t, timestep, prompts * 2)
        error = reduce_latent((output - self._target(clean, noise, timestep).to(policy.device)) ** 2, "mean")
        winner, loser = error.chunk(2)
        return winner, loser

    def _target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the network predicts of clean latents (N, C, H, W) and their noise at (N,) diffusion times."""
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return clean
        velocity: Tensor = self.scheduler.get_velocity(clean, noise, timestep)
        return velocity


def diffusion_dpo_loss(
    winner_error: Tensor,
    loser_error: Tensor,
    reference_winner_error: Tensor,
    reference_loser_error: Tensor,
    beta: float = 5000.0,
) -> tuple[Tensor, Tensor]:
    """-log sigmoid(-beta / 2 ((m_w - m_l) - (ref_w - ref_l))) of mean squared errors (N,), and its logit over beta.

    The logit is above 0 where the policy favours the winner more than the reference does.
    """
    margins = -((winner_error - loser_error) - (reference_winner_error - reference_loser_error)) / 2
    return -F.logsigmoid(beta * margins), margins
