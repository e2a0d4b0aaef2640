"""AdamW on the adapter, fed with gradients that were summed over all workers."""

import logging
import math

import torch
from torch import Tensor

from pipeline.reduction import sum_over_workers
from pipeline.worker_settings import LearnerSettings

logger = logging.getLogger(__name__)


class NonFiniteGradientError(RuntimeError):
    """Too many optimiser steps had to be skipped because the gradient was NaN or infinite."""


class AdapterOptimiser:
    """Sums gradients over pairs and workers, divides by the number of pairs, clips, and steps.

    Every worker calls `step` equally often and sees the same summed gradient, so all adapters stay equal.
    """

    def __init__(
        self, parameters: dict[str, torch.nn.Parameter], settings: LearnerSettings, learning_rate: float
    ) -> None:
        """Start with zero moments and, where `settings.ema_decay` is given, an average equal to the parameters."""
        self.parameters = parameters
        self.settings = settings
        self.full_learning_rate = learning_rate
        self.steps_taken = 0
        self.steps_skipped = 0
        self.adamw = torch.optim.AdamW(
            parameters.values(),
            lr=learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.average = (
            {name: value.detach().clone() for name, value in parameters.items()} if settings.ema_decay else None
        )

    def step(self, sums: Tensor) -> tuple[Tensor, float]:
        """One optimiser step on the gradients accumulated in `.grad`, which are sums over this worker's pairs.

        Args:
            sums: (n,) float32 diagnostics to add up over workers in the same message; the first is the number of pairs.

        Returns:
            `sums` over all workers, and the gradient norm before clipping (NaN where no worker had a pair).

        Raises:
            NonFiniteGradientError: more steps than `max_skipped_steps` had a gradient that is not finite.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        message = torch.cat([sums.to(gradients[0].device), *(gradient.flatten() for gradient in gradients)])
        message = sum_over_workers(message)
        sums, flat = message[: len(sums)].cpu(), message[len(sums) :]
        self.adamw.zero_grad(set_to_none=True)
        pairs = float(sums[0])
        if pairs == 0:
            return sums, math.nan
        flat = flat / pairs
        norm = float(flat.norm())
        if not torch.isfinite(flat).all():
            self._skip()
            return sums, norm
        flat = flat * min(1.0, self.settings.max_grad_norm / (norm + 1e-6))
        for parameter, gradient in zip(
            self.parameters.values(), flat.split([p.numel() for p in self.parameters.values()]), strict=True
        ):
            parameter.grad = gradient.view_as(parameter)
        self._set_learning_rate()
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.steps_taken += 1
        self._update_average()
        return sums, norm

    @property
    def learning_rate(self) -> float:
        """The learning rate of the step that comes next."""
        warmup = self.settings.warmup_steps
        return self.full_learning_rate * min(1.0, (self.steps_taken + 1) / warmup if warmup else 1.0)

    def state(self) -> dict[str, Tensor]:
        """Everything but the settings, as named CPU tensors that `load_state` takes back."""
        tensors = {f"adapter.{name}": value.detach() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            for key, moment in self.adamw.state[value].items():
                tensors[f"adamw.{key}.{name}"] = moment
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors["steps"] = torch.tensor([self.steps_taken, self.steps_skipped])
        # safetensors takes no other memory format; channels_last is one.
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue exactly where `state` was taken."""
        self.steps_taken, self.steps_skipped = tensors["steps"].tolist()
        # A state taken before the first step has no moments, and none of this optimiser's own may stay.
        self.adamw.state.clear()
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"adapter.{name}"])
                moments = {key: tensors.get(f"adamw.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                if moments["step"] is not None:
                    self.adamw.state[value] = {
                        key: moment.clone() if key == "step" else moment.to(value.device, copy=True)
                        for key, moment in moments.items()
                        if moment is not None
                    }
        if self.average is not None:
            self.average = {
                name: tensors[f"average.{name}"].to(value.device) for name, value in self.parameters.items()
            }

    def _set_learning_rate(self) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = self.learning_rate

    def _update_average(self) -> None:
        if self.average is None:
            return
        assert self.settings.ema_decay is not None
        for name, value in self.parameters.items():
            self.average[name].lerp_(value.detach(), 1 - self.settings.ema_decay)

    def _skip(self) -> None:
        self.steps_skipped += 1
        logger.warning("a gradient is not finite; this is the skipped optimiser step number %d", self.steps_skipped)
        if self.steps_skipped > self.settings.max_skipped_steps:
            raise NonFiniteGradientError(
                f"{self.steps_skipped} optimiser steps had a gradient that is not finite, more than learner."
                f"max_skipped_steps={self.settings.max_skipped_steps}; lower learner.learning_rate or method.beta, or "
                "with model.dtype=float16 learner.loss_scale, or use model.dtype=bfloat16 or float32"
            )
