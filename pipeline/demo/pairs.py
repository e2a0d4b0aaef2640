"""Preference pairs of the demo world, between a right scene and a near miss, or between two right ones by a reward."""

import io

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pipeline.demo.captions import leave_open
from pipeline.demo.grammar import ATTRIBUTE_VALUES, SINGLE_SHARE, UNSTATED, is_held_out, scene_from_attributes
from pipeline.demo.renderer import draw_scenes, random_attributes
from pipeline.demo.train_clip import change_one_attribute, is_right
from pipeline.pixels import to_pixels
from pipeline.preference_pairs import CAPTION, COLUMNS, FIRST, LABEL, SECOND
from pipeline.rewards.base import Reward

JPEG_QUALITY = 95


def demo_pairs(count: int, seed: int) -> pa.Table:
    """`count` pairs in Pick-a-Pic's columns, of prompts that alignment may train on; equal for equal arguments.

    The near miss differs from the right scene in one attribute that the prompt states, and lies elsewhere in the
    picture. Which of the two comes first is a coin's throw.
    """
    generator = torch.Generator().manual_seed(seed)
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    while len(columns[CAPTION]) < count:
        right, wrong, captions = _scenes(count - len(columns[CAPTION]), generator)
        first_is_right = torch.rand(len(captions), generator=generator) < 0.5
        images = [_encode(draw_scenes(rows, generator)) for rows in (right, wrong)]
        columns[CAPTION] += captions
        for good, bad, in_order in zip(*images, first_is_right.tolist(), strict=True):
            columns[FIRST].append(good if in_order else bad)
            columns[SECOND].append(bad if in_order else good)
            columns[LABEL].append(float(in_order))
    return pa.table(columns)


def rewarded_pairs(count: int, seed: int, reward: Reward) -> pa.Table:
    """`count` pairs in Pick-a-Pic's columns, of prompts that alignment may train on; equal for equal arguments.

    Both images show all that the prompt states, each with its own choice of what that leaves open, and `reward` prefers
    one of them; where it scores both alike there is no pair.
    """
    generator = torch.Generator().manual_seed(seed)
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    while len(columns[CAPTION]) < count:
        rows = random_attributes(count - len(columns[CAPTION]), SINGLE_SHARE, generator)
        stated = leave_open(rows, generator)
        scenes = [scene_from_attributes(row) for row in stated.tolist()]
        prompts = [scene.prompt() for scene in scenes]
        images = [draw_scenes(complete, generator) for complete in (rows, _completed_anew(rows, stated, generator))]
        gains = reward.score(images[0], prompts) - reward.score(images[1], prompts)
        for scene, prompt, *files, gain in zip(scenes, prompts, *map(_encode, images), gains.tolist(), strict=True):
            if gain != 0 and not is_held_out(scene):
                for name, value in zip(COLUMNS, (prompt, *files, float(gain > 0)), strict=True):
                    columns[name].append(value)
    return pa.table(columns)


def _completed_anew(rows: Tensor, stated: Tensor, generator: torch.Generator) -> Tensor:
    """Complete rows (N, 8) with what `stated` (N, 8) leaves open drawn anew."""
    choices = torch.tensor([len(values) for values in ATTRIBUTE_VALUES])
    drawn = (torch.rand(rows.shape, generator=generator) * choices).long()
    return torch.where((stated == UNSTATED) & (rows != UNSTATED), drawn, rows)


def _scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, list[str]]:
    """At most `count` right scenes and near misses, (N, 8) each, and the prompts that tell them apart."""
    right = random_attributes(count, SINGLE_SHARE, generator)
    stated, wrong = leave_open(right, generator), change_one_attribute(right, generator)
    told_apart = ~is_right(stated, wrong).diagonal()
    scenes = [scene_from_attributes(row) for row in stated.tolist()]
    kept = told_apart & torch.tensor([not is_held_out(scene) for scene in scenes])
    return right[kept], wrong[kept], [scene.prompt() for scene, keep in zip(scenes, kept.tolist(), strict=True) if keep]


def _encode(images: Tensor) -> list[bytes]:
    """(B, 3, H, W) in [0, 1] -> JPEG files."""
    files = []
    for image in to_pixels(images):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
        files.append(buffer.getvalue())
    return files
