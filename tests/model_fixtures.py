"""Pytest plugin: one miniature model and one miniature CLIP for the whole session."""

from pathlib import Path

import pytest
import torch
from made_once import made_once
from miniature import write_clip, write_pipeline


@pytest.fixture(scope="session")
def miniature_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline directory that predicts noise."""
    torch.set_num_threads(1)
    return made_once(tmp_path_factory, "miniature", lambda folder: write_pipeline(folder / "model")) / "model"


@pytest.fixture(scope="session")
def miniature_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel directory for the images of the miniature model."""
    return made_once(tmp_path_factory, "miniature_clip", lambda folder: write_clip(folder / "clip")) / "clip"
