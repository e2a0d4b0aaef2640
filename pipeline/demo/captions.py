"""Prompts of rendered scenes, worded at random as users might: what is left open, and from which object it is told."""

import random

import torch
from torch import Tensor

from pipeline.demo.grammar import UNSTATED, scene_from_attributes

_STATED_SHARE = 0.8


def leave_open(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Complete (B, 8) rows with sizes and the background left unstated at random, as prompts do."""
    stated = rows.clone()
    for column in (1, 2, 5):
        open_rows = torch.rand(len(rows), generator=generator) > _STATED_SHARE
        stated[open_rows, column] = UNSTATED
    return stated


def describe(rows: Tensor, generator: torch.Generator) -> list[str]:
    """Prompts of (B, 8) rows, told from either object at random."""
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    scenes = [scene_from_attributes(row) for row in rows.tolist()]
    return [(scene.reversed() if rng.random() < 0.5 else scene).prompt() for scene in scenes]
