"""Runs with several rewards: the actors against one process, and the evaluation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from crew_fixtures import fresh, metrics_in
from in_process import align_in_process
from settings import miniature_settings

from actors.evaluation import WEIGHTED_SUM, evaluate
from actors.inputs import read_inputs
from actors.training import train
from actors.weights import checksum_of
from pipeline.config import RunSettings

pytest_plugins = ["crew_fixtures", "model_fixtures"]

pytestmark = pytest.mark.slow


HICCUPS = "evaluation_rewards:Hiccups"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file without which the third reward returns NaN once."""
    return tmp_path_factory.mktemp("hiccups") / "asked"


@pytest.fixture(scope="module")
def settings(miniature_model: Path, miniature_clip: Path, asked: Path) -> RunSettings:
    """TailorPO-G guided by one reward and ranked by three, in units that are measured as the run goes on."""
    return miniature_settings(
        miniature_model,
        iterations=3,
        reward=[
            {"name": "clip", "path": str(miniature_clip)},
            {"name": "jpeg_compressibility", "weight": 0.5},
            {"name": HICCUPS, "path": str(asked), "weight": 0.25},
        ],
        reward_normalisation="running",
        method={"guidance": {}},
        rollout={"trajectories": 16, "batch_size": 4, "min_workers": 2, "max_workers": 2},
        evaluation={"images": 4, "rewards": [{"name": "jpeg_incompressibility"}]},
    )


@pytest.fixture(scope="module")
def expected(settings: RunSettings, asked: Path) -> list[str]:
    """The checksum of every published adapter, from one process with one thread and a reward that returns no NaN."""
    asked.touch()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    published = align_in_process(settings)
    torch.set_num_threads(threads)
    return [checksum_of(adapter) for adapter in published[1:]]


def test_the_actors_equal_one_process_though_a_reward_returns_nan_once_and_the_evaluation_shows_every_reward(
    settings, expected, asked, crew, tmp_path
):
    run = fresh(crew, tmp_path, settings)
    asked.unlink()
    inputs = read_inputs(settings)
    train(settings, inputs, run, tmp_path)
    metrics = metrics_in(tmp_path)
    assert [line["adapter_sha256"] for line in metrics] == expected
    assert asked.exists() and metrics[-1]["garbled/reward"] == 1
    assert metrics[0]["reward_scale/clip"] == 1.0
    assert len({line["reward_scale/jpeg_compressibility"] for line in metrics}) == 3
    assert metrics[1]["reward_centre/clip"] == metrics[0]["reward/clip"]
    assert all(line["reward/jpeg_compressibility"] < 0 for line in metrics)

    ticket = ray.get(run.store.current.remote())
    evaluation = asyncio.run(evaluate(settings, inputs.prompts.held_out, run.rollout_fleet, run.reward_fleet, ticket))
    assert list(evaluation.rewards) == [
        *(WEIGHTED_SUM, "clip", "jpeg_compressibility", HICCUPS, "jpeg_incompressibility")
    ]
    rows = evaluation.rewards
    assert rows["jpeg_compressibility"].base_mean == pytest.approx(-rows["jpeg_incompressibility"].base_mean)
    weights = ticket.normalisation.coefficients
    gains = [rows[label].difference for label in settings.trained_reward_labels]
    assert rows[WEIGHTED_SUM].difference == pytest.approx(np.dot(weights, gains), rel=1e-3, abs=1e-5)
    assert evaluation.changes.mean() == pytest.approx(rows[WEIGHTED_SUM].difference, rel=1e-3, abs=1e-6)
