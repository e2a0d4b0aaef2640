"""What worker 0 of the learner does with a policy beside learning: hand it over, and have its sample grid drawn."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from eventually import wait_until
from settings import miniature_settings

from actors import publishing
from actors.cluster import ClusterInfo
from actors.journal import start_journal
from actors.publishing import Publisher
from actors.training import TrainLoopConfig
from actors.weights import start_weight_store
from pipeline.checkpoint_store import CheckpointStore
from pipeline.rollout_policy import RolloutPolicy

DRAWING_SECONDS = 0.05


@pytest.fixture
def config(ray_session: ClusterInfo, tmp_path: Path) -> TrainLoopConfig:
    """A run that draws a grid of every second version."""
    settings = miniature_settings(Path("a-model"), samples={"every": 2, "count": 4})
    store, journal = start_weight_store(), start_journal(tmp_path, settings)
    return TrainLoopConfig(settings, ["a"], store, journal, CheckpointStore(str(tmp_path), 1), None, None)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The versions of which grids are drawn, each in `DRAWING_SECONDS`."""
    versions = []

    async def draw(*arguments: Any) -> np.ndarray:
        versions.append(arguments[-1].version)
        await asyncio.sleep(DRAWING_SECONDS)
        return np.zeros((4, 8, 8, 3), np.uint8)

    monkeypatch.setattr(publishing, "draw_images", draw)
    return versions


def policy(version: int) -> RolloutPolicy:
    return RolloutPolicy(version, np.full(3, version, np.float32), None)


def test_every_second_version_is_drawn_and_the_last_one_once(config, drawn, tmp_path):
    publisher = Publisher(config, leads=True)
    for version in range(4):
        publisher.publish(policy(version), version)
    publisher.publish_result(policy(4), 4)
    assert drawn == [0, 2, 4]
    assert ray.get(config.store.current.remote()).version == 4
    assert len(list((tmp_path / "samples").iterdir())) == 3


def test_the_time_of_a_grid_is_told_apart_and_told_once(config, drawn):
    """Iterations, and budgets of seconds, are without it."""
    publisher = Publisher(config, leads=True)
    started = time.monotonic()
    publisher.publish(policy(0), 0)
    assert DRAWING_SECONDS <= publisher.take_drawing_seconds() <= time.monotonic() - started
    publisher.publish(policy(1), 1)
    assert publisher.take_drawing_seconds() == 0


def test_a_policy_that_was_lost_with_the_store_is_published_again_and_that_is_told(config, drawn, caplog):
    publisher = Publisher(config, leads=True)
    publisher.publish(policy(3), 3)
    publisher.publish_again_if_lost()
    assert said_of(caplog) == [], "nothing was lost yet"
    ray.kill(config.store, no_restart=False)
    wait_until(lambda: ray.get(config.store.versions.remote()) == [])  # the old one lives for a moment
    publisher.publish_again_if_lost()
    assert ray.get(config.store.current.remote()).version == 3
    assert said_of(caplog) == ["the weight store was lost; policy version 3 was published again"]


def said_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the publisher said; Ray has lines of its own."""
    return [record.getMessage() for record in caplog.records if record.name == publishing.logger.name]


def test_the_other_workers_publish_and_draw_nothing(config, drawn):
    publisher = Publisher(config, leads=False)
    publisher.publish(policy(0), 0)
    assert drawn == [] and ray.get(config.store.versions.remote()) == []
    assert publisher.take_drawing_seconds() == 0
