"""Schedules as they are published: from before two of their settings existed, or written by another sampler."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from policies import make_policy
from settings import miniature_settings
from stock_pipeline import PROMPTS, SEED, stock_latents

from pipeline.generation import evaluation_batch, generate_latents
from pipeline.preflight import check_run
from pipeline.scheduler import load_scheduler

pytest_plugins = ["model_fixtures"]

# What stands in the file of the schedule, and what is taken out of it.
FILES = {
    "older than both settings": ({}, ("clip_sample", "steps_offset")),
    "clipping, without an offset": ({"clip_sample": True, "steps_offset": 0}, ()),
    "of Euler's sampler": ({"_class_name": "EulerDiscreteScheduler"}, ("clip_sample", "clip_sample_range")),
}


@pytest.fixture(params=FILES.values(), ids=FILES.keys())
def published(request: pytest.FixtureRequest, miniature_model: Path, tmp_path: Path) -> Path:
    """A model with such a file, and the index that fits it."""
    changed, missing = request.param
    model = Path(shutil.copytree(miniature_model, tmp_path / "model"))
    file, index = model / "scheduler" / "scheduler_config.json", model / "model_index.json"
    settings = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in missing}))
    components = json.loads(index.read_text()) | {"scheduler": ["diffusers", settings["_class_name"]]}
    index.write_text(json.dumps(components))
    return model


def test_stock_diffusers_draws_the_same_latents(published: Path) -> None:
    assert check_run(miniature_settings(published)) == 0
    policy = make_policy(miniature_settings(published))
    ours = generate_latents(policy, evaluation_batch(PROMPTS, 0, 2), SEED)
    stock = stock_latents(published, None, policy)
    torch.testing.assert_close(stock, ours, rtol=0, atol=1e-4 * ours.abs().max().item())


def test_the_last_time_of_the_grid_is_one(published: Path) -> None:
    scheduler = load_scheduler(str(published))
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[-1] == 1
