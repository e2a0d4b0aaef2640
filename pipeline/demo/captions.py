"""Prompts of rendered scenes, worded at random: what is left open, what is told wrongly, and from which object."""

import random

import torch
from torch import Tensor

from pipeline.demo.grammar import ATTRIBUTE_VALUES, ATTRIBUTES, UNSTATED, scene_from_attributes

_STATED_SHARE = 0.8
_MISTAKABLE = ("background", "size_0", "colour_0", "size_1", "colour_1")


def leave_open(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Complete (B, 8) rows with sizes and the background left unstated at random, as prompts do."""
    stated = rows.clone()
    for column in (1, 2, 5):
        open_rows = torch.rand(len(rows), generator=generator) > _STATED_SHARE
        stated[open_rows, column] = UNSTATED
    return stated


def misstate(rows: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """(B, 8) rows with each stated background, size and colour replaced by another one with ``probability``.

    Captions found on the web are as careless, and a denoiser that learned from them errs in ways that preferences
    can correct.
    """
    told = rows.clone()
    for name in _MISTAKABLE:
        column = ATTRIBUTES.index(name)
        values = len(ATTRIBUTE_VALUES[column])
        mistaken = torch.rand(len(rows), generator=generator) < probability
        other = (told[:, column] + torch.randint(1, values, (len(rows),), generator=generator)) % values
        told[:, column] = torch.where(mistaken & (told[:, column] != UNSTATED), other, told[:, column])
    return told


def describe(rows: Tensor, generator: torch.Generator) -> list[str]:
    """Prompts of (B, 8) rows, told from either object at random."""
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    scenes = [scene_from_attributes(row) for row in rows.tolist()]
    return [(scene.reversed() if rng.random() < 0.5 else scene).prompt() for scene in scenes]
