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
from pipeline.scoring import check_scores

JPEG_QUALITY = 95

# Images that a reward scores at once.
SCORED_AT_ONCE = 64

# Rounds in a row without a pair after which there will be none.
FRUITLESS_ROUNDS = 100


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

    Raises:
        RewardError: its scores are no finite numbers.
        ValueError: it scores all images alike.
    """
    generator = torch.Generator().manual_seed(seed)
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    fruitless = 0
    while len(columns[CAPTION]) < count:
        before = len(columns[CAPTION])
        rows = random_attributes(count - len(columns[CAPTION]), SINGLE_SHARE, generator)
        stated = leave_open(rows, generator)
        scenes = [scene_from_attributes(row) for row in stated.tolist()]
        prompts = [scene.prompt() for scene in scenes]
        images = [draw_scenes(complete, generator) for complete in (rows, _completed_anew(rows, stated, generator))]
        first, second = (_scores(reward, side, prompts) for side in images)
        gains = (first - second).tolist()
        for scene, prompt, *files, gain in zip(scenes, prompts, *map(_encode, images), gains, strict=True):
            if gain != 0 and not is_held_out(scene):
                for name, value in zip(COLUMNS, (prompt, *files, float(gain > 0)), strict=True):
                    columns[name].append(value)
        fruitless = fruitless + 1 if len(columns[CAPTION]) == before else 0
        if fruitless == FRUITLESS_ROUNDS:
            raise ValueError(f"reward {reward.name!r} prefers none of two right pictures; choose another reward")
    return pa.table(columns)


def _scores(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    """Scores (N,) float32 of images (N, 3, H, W)."""
    scores = []
    for start in range(0, len(prompts), SCORED_AT_ONCE):
        part = slice(start, start + SCORED_AT_ONCE)
        scores.append(check_scores(reward.score(images[part], prompts[part]), prompts[part], reward.name))
    return torch.cat(scores)


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
