"""The held-out judge. Its seed, architecture and augmentation differ from those of the reward."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.demo.degrade import add_noise, blur, jitter_colours, on_some
from pipeline.demo.grammar import UNSTATED
from pipeline.demo.judge import JudgeModel
from pipeline.demo.renderer import draw_scenes, random_attributes
from pipeline.demo.training import LoopConfig, fast_precision, train


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mild defects only: the judge shall read clean generated pictures, not guess at broken ones."""
    images = on_some(images, 0.4, generator, lambda some: blur(some, 1.2 * torch.rand(len(some), generator=generator)))
    images = on_some(images, 0.4, generator, lambda some: add_noise(some, 0.08, generator))
    return jitter_colours(images, 0.04, generator).clamp(0, 1)


def classification_loss(logits: list[Tensor], attributes: Tensor) -> Tensor:
    """Cross-entropy of every attribute that the (B, 8) rows hold, summed over attributes."""
    losses = [
        F.cross_entropy(logit, target, ignore_index=UNSTATED)
        for logit, target in zip(logits, attributes.unbind(1), strict=True)
    ]
    return torch.stack(losses).sum()


def train_judge(
    config: LoopConfig,
    batch_size: int,
    device: torch.device,
    checkpoint: Path,
    on_checkpoint: Callable[[int, JudgeModel], None] | None = None,
) -> JudgeModel:
    """Train the classifier on random scenes, a part of them slightly degraded; no other network of the demo is used."""
    torch.manual_seed(config.seed)
    judge = JudgeModel().to(device)

    def gradient_function(model: JudgeModel, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        attributes = random_attributes(batch_size, 0.25, generator)
        images = _augment(draw_scenes(attributes, generator).to(device), generator)
        attributes = attributes.to(device)
        with fast_precision(device):
            logits = [logit.float() for logit in model(images)]
        correct = (torch.stack([logit.argmax(1) for logit in logits], 1) == attributes) | (attributes == UNSTATED)
        loss = classification_loss(logits, attributes)
        loss.backward()
        return loss.detach(), {"all_correct": correct.all(1).float().mean().item()}

    return train("judge", judge, gradient_function, config, checkpoint, on_checkpoint)
