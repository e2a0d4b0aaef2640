"""JPEG size as a reward."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.rewards import load_reward
from pipeline.rewards.base import Reward

CPU = torch.device("cpu")


def compressibility() -> Reward:
    return load_reward("jpeg_compressibility", None, CPU, torch.float32)


def test_a_blank_512_image_is_minus_4_7_kb() -> None:
    score = compressibility().score(torch.ones(1, 3, 512, 512), ["a blank sheet"])
    assert score.item() == pytest.approx(-4.7, abs=0.1)


def test_the_score_is_the_size_of_the_file_pil_writes() -> None:
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    sizes = []
    for image in images:
        buffer = BytesIO()
        Image.fromarray(np.rint(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(
            buffer, format="JPEG", quality=95
        )
        sizes.append(len(buffer.getvalue()))
    scores = compressibility().score(images, ["a", "b", "c"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, -torch.tensor(sizes, dtype=torch.float32) / 1000)


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 100))
def test_incompressibility_is_the_negative(batch: int, height: int, width: int, seed: int) -> None:
    images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    prompts = ["anything"] * batch
    incompressibility = load_reward("jpeg_incompressibility", None, CPU, torch.float32).score(images, prompts)
    assert (incompressibility > 0).all()
    assert torch.equal(incompressibility, -compressibility().score(images, prompts))


def test_noise_scores_below_a_flat_picture() -> None:
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    flat = torch.full((1, 3, 64, 64), 0.3)
    noisy_score, flat_score = compressibility().score(torch.cat([noise, flat]), ["noise", "flat"])
    assert noisy_score < flat_score


def test_it_is_not_differentiable_and_says_so() -> None:
    images = torch.rand(1, 3, 8, 8).requires_grad_()
    reward = compressibility()
    assert not reward.differentiable
    assert not reward.score(images, ["x"]).requires_grad


def test_pixels_that_are_not_finite_are_refused() -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[0, 1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        compressibility().score(images, ["x"])
