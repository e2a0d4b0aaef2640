"""A training loop that survives being killed: atomic checkpoints, and randomness that depends on (seed, step) alone."""

import itertools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Model = TypeVar("Model", bound=nn.Module)
GradientFunction = Callable[[Model, torch.Generator], tuple[Tensor, dict[str, float]]]
"""(model, generator of this step) -> (loss, numbers to report); leaves the loss's gradient in the parameters."""

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast one network trains."""

    steps: int
    learning_rate: float
    seed: int
    warmup_steps: int = 100
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    horizon: int | None = None  # the step at which the cosine of the learning rate ends; None: the last one
    final_rate: float = 0.05  # the share of the learning rate left there
    checkpoint_every: int = 250
    report_every: int = 50


@dataclass
class Progress:
    """Prints one plain line per report; ``label`` names the stage."""

    label: str
    steps: int
    started: float = field(default_factory=time.monotonic)
    first_step: int = 0

    def elapsed(self) -> float:
        """Seconds since this process began the stage."""
        return time.monotonic() - self.started

    def report(self, step: int, numbers: dict[str, float]) -> None:
        """Print the stage, step, time left and ``numbers``."""
        elapsed = self.elapsed()
        left = elapsed / max(step - self.first_step, 1) * (self.steps - step)
        values = " ".join(f"{name}={value:.4g}" for name, value in numbers.items())
        print(f"[{self.label}] {step}/{self.steps} {values} elapsed={elapsed:.0f}s left={left:.0f}s", flush=True)


def fast_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the hardware multiplies it, as every GPU of today does and not every CPU.

    On a CPU that has to emulate it, a training step in bfloat16 takes ten times as long as in float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16; a GPU is taken to have them."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_INSTRUCTIONS)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one training step; a resumed run draws what an uninterrupted one draws."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def save_atomically(value: Any, path: Path) -> None:
    """``torch.save`` under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


def _rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine down to ``final_rate`` at the horizon; as a share of the learning rate."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / (config.horizon or config.steps)))
    return warm * (config.final_rate + (1 - config.final_rate) * cosine)


def backward_in_threads(model: nn.Module, loss_of: Callable[[slice], Tensor], batch_size: int, shards: int) -> Tensor:
    """Share a batch among threads: the mean of ``loss_of`` over equal slices, its gradient left in the parameters.

    Small networks use two cores better this way than by threads within each operation.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    bounds = [batch_size * shard // shards for shard in range(shards + 1)]
    slices = [slice(start, end) for start, end in itertools.pairwise(bounds)]

    def run(part: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = loss_of(part) * ((part.stop - part.start) / batch_size)
        return loss.detach(), torch.autograd.grad(loss, parameters, materialize_grads=True)

    with ThreadPoolExecutor(shards) as threads:
        results = list(threads.map(run, slices))
    for parameter, *gradients in zip(parameters, *(gradient for _, gradient in results), strict=True):
        parameter.grad = torch.stack(gradients).sum(dim=0)
    return torch.stack([loss for loss, _ in results]).sum()


def finished_seconds(checkpoint: Path) -> float:
    """The seconds all runs of a stage spent on it, as its last checkpoint says."""
    return float(torch.load(checkpoint, map_location="cpu", weights_only=True)["seconds"])


def train(
    label: str,
    model: Model,
    gradient_function: GradientFunction[Model],
    config: LoopConfig,
    checkpoint: Path,
    on_checkpoint: Callable[[int, Model], None] | None = None,
) -> Model:
    """Train ``model``, continuing from ``checkpoint`` if it exists; return the exponential average of its weights.

    Args:
        gradient_function: computes the loss of one step and its gradient, see ``GradientFunction``.
        on_checkpoint: called with (step, averaged model) after every checkpoint was written.
    """
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    first_step, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, seconds = state["step"], state["seconds"]
        print(f"[{label}] continuing at step {first_step}", flush=True)
    progress = Progress(label, config.steps, first_step=first_step)
    model.train()
    for step in range(first_step, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config)
        optimizer.zero_grad(set_to_none=True)
        loss, numbers = gradient_function(model, step_generator(config.seed, step))
        norm = nn.utils.clip_grad_norm_(trained, config.gradient_clip, error_if_nonfinite=True)
        optimizer.step()
        averaged.update_parameters(model)
        done = step + 1
        if done % config.report_every == 0 or done == config.steps:
            progress.report(done, {"loss": loss.item(), **numbers, "gradient_norm": norm.item()})
        if done % config.checkpoint_every == 0 or done == config.steps:
            state = {"model": model.state_dict(), "averaged": averaged.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": done}
            save_atomically({**state, "seconds": seconds + progress.elapsed()}, checkpoint)
            if on_checkpoint is not None:
                on_checkpoint(done, cast(Model, averaged.module))
    return cast(Model, averaged.module.eval())
