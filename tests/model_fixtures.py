"""Pytest plugin: one miniature model and one miniature CLIP for the whole session."""

from pathlib import Path

import pytest
import torch
from miniature import write_clip, write_pipeline


@pytest.fixture(scope="session")
def miniature_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline directory that predicts noise."""
    torch.set_num_threads(1)
    return write_pipeline(tmp_path_factory.mktemp("miniature") / "model")


@pytest.fixture(scope="session")
def miniature_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel directory for the images of the miniature model."""
    return write_clip(tmp_path_factory.mktemp("miniature") / "clip")
