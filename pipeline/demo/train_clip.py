"""Stage 3: the preference reward, a ``CLIPModel`` trained contrastively with hard negatives.

Every batch consists of families: a scene and copies of it with one or two attributes changed, each rendered and
described. So an image meets captions one attribute away and a caption meets images one attribute away. Captions that
leave attributes open can be right for several images of a batch; those pairs are left out of the loss.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pipeline.demo import architectures
from pipeline.demo.captions import describe, leave_open
from pipeline.demo.degrade import add_coarse_noise, add_noise, blend_with_others, blur, jitter_colours, on_some
from pipeline.demo.grammar import ATTRIBUTE_VALUES, UNSTATED
from pipeline.demo.renderer import draw_scenes, random_attributes
from pipeline.demo.train_judge import classification_loss
from pipeline.demo.training import LoopConfig, fast_precision, train
from pipeline.rewards.clip_preprocessing import normalise

FAMILY = 4
READING_WEIGHT = 0.2
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
_LARGEST_LOGIT_SCALE = 4.6052  # ln 100, CLIP's own bound


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP of the demo's architecture for this tokenizer."""
    text = {
        **architectures.CLIP_TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=architectures.CLIP_VISION, projection_dim=architectures.CLIP_PROJECTION
        )
    )


class ContrastiveTrainee(nn.Module):
    """A CLIP and a linear reader of attributes from its image embeddings, which speeds learning and is then dropped."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.sizes = [len(values) for values in ATTRIBUTE_VALUES]
        self.reader = nn.Linear(architectures.CLIP_PROJECTION, sum(self.sizes))

    def forward(self, tokens: dict[str, Tensor], pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, B) of images against texts, and the attribute logits of ``train_judge.classification_loss``."""
        output = self.clip(**tokens, pixel_values=pixel_values)
        attributes = self.reader(output.image_embeds * self.clip.config.projection_dim**0.5)
        return output.logits_per_image.float(), list(attributes.float().split(self.sizes, dim=1))


def swap_objects(rows: Tensor) -> Tensor:
    """(B, 8) rows with the two objects exchanged: the reversed relation; singles are returned as they are."""
    swapped = rows[:, [0, 1, 5, 6, 7, 2, 3, 4]]
    return torch.where(rows[:, :1] == 0, rows, swapped)


def swap_binding(rows: Tensor) -> Tensor:
    """(B, 8) rows of pairs with the colours of the two objects exchanged; singles are returned as they are."""
    swapped = rows[:, [0, 1, 2, 6, 4, 5, 3, 7]]
    return torch.where(rows[:, :1] == 0, rows, swapped)


def change_one_attribute(rows: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 8) complete rows with one attribute of each given another value; pairs may turn their layout."""
    count = len(rows)
    # Columns by weight: background, sizes, colours, shapes, and the layout of pairs.
    weights = torch.tensor([1.0, 0.7, 1.0, 1.5, 2.0, 1.0, 1.5, 2.0]).repeat(count, 1)
    weights[rows[:, 0] == 0, 0] = 0
    weights[rows == UNSTATED] = 0
    column = torch.multinomial(weights, 1, generator=generator)[:, 0]
    sizes = torch.tensor([len(values) for values in ATTRIBUTE_VALUES])[column]
    old = rows.gather(1, column[:, None])[:, 0]
    shift = 1 + (torch.rand(count, generator=generator) * (sizes - 1)).long()
    new = torch.where(column == 0, 3 - old, (old + shift) % sizes)  # a pair stays a pair: horizontal <-> vertical
    return rows.scatter(1, column[:, None], new[:, None])


def family_of(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Each (N, 8) row followed by its near misses: (N * FAMILY, 8); exchanged pairs, then one attribute changed."""
    choice = torch.rand(len(rows), 1, generator=generator)
    exchanged = torch.where(choice < 0.5, swap_objects(rows), swap_binding(rows))
    exchanged = torch.where(rows[:, :1] == 0, change_one_attribute(rows, generator), exchanged)
    members = [rows, exchanged] + [change_one_attribute(rows, generator) for _ in range(FAMILY - 2)]
    return torch.stack(members, dim=1).flatten(0, 1)


def is_right(captions: Tensor, images: Tensor) -> Tensor:
    """Whether caption rows (C, 8) are true of image rows (I, 8): (C, I) bool."""
    return ((captions[:, None] == UNSTATED) | (captions[:, None] == images[None])).all(dim=2)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """What x0 predictions look like: blurred, blended with other scenes, noisy, in slightly shifted colours."""
    images = on_some(images, 0.3, generator, lambda some: blend_with_others(some, 0.3, generator))
    images = on_some(
        images, 0.5, generator, lambda some: blur(some, 3.0 * torch.rand(len(some), generator=generator) ** 2)
    )
    images = on_some(images, 0.3, generator, lambda some: add_coarse_noise(some, 0.15, generator))
    images = on_some(images, 0.3, generator, lambda some: add_noise(some, 0.12, generator))
    return jitter_colours(images, 0.05, generator).clamp(0, 1)


def pixel_values(images: Tensor) -> Tensor:
    """Images in [0, 1] as the vision tower takes them."""
    return normalise(images, IMAGE_MEAN, IMAGE_STD)


def masked_contrastive_loss(similarity: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """Symmetric InfoNCE of (B, B) logits whose diagonal is right, other right pairs left out; and its accuracy."""
    other = right & ~torch.eye(len(right), dtype=torch.bool, device=right.device)
    logits = similarity.masked_fill(other, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    accuracy = (logits.argmax(dim=1) == target).float().mean().item()
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)), accuracy


def train_clip(
    config: LoopConfig,
    batch_size: int,
    tokenizer: CLIPTokenizer,
    device: torch.device,
    checkpoint: Path,
    on_checkpoint: Callable[[int, ContrastiveTrainee], None] | None = None,
) -> CLIPModel:
    """Train the reward; ``batch_size`` counts images and is a multiple of ``FAMILY``."""
    torch.manual_seed(config.seed)
    trainee = ContrastiveTrainee(build_clip(tokenizer)).to(device)
    # Twice as fast as fused attention for so few and narrow heads, in bfloat16 on a CPU.
    trainee.clip.set_attn_implementation("eager")

    def gradient_function(model: ContrastiveTrainee, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = family_of(random_attributes(batch_size // FAMILY, 0.3, generator), generator)
        stated = leave_open(rows, generator)
        tokens = tokenizer(describe(stated, generator), padding=True, return_tensors="pt").to(device)
        images = augment(draw_scenes(rows, generator).to(device), generator)
        with fast_precision(device):
            similarity, read = model(tokens, pixel_values(images))
        with torch.no_grad():
            model.clip.logit_scale.clamp_(max=_LARGEST_LOGIT_SCALE)
        contrastive, accuracy = masked_contrastive_loss(similarity, is_right(stated, rows).T.to(device))
        reading = classification_loss(read, rows.to(device))
        numbers = {"accuracy": accuracy, "contrastive": contrastive.item(), "reading": reading.item()}
        loss = contrastive + READING_WEIGHT * reading
        loss.backward()
        return loss.detach(), numbers

    return train("clip", trainee, gradient_function, config, checkpoint, on_checkpoint).clip
