"""Pytest plugin: one crew for all runs of a module, which defines the `settings`, and what those runs leave behind."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.cluster import ClusterInfo
from actors.crew import Crew, start_crew
from actors.journal import start_journal
from actors.weights import start_weight_store
from pipeline.config import RunSettings


@pytest.fixture(scope="module")
def crew(ray_session: ClusterInfo, settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Fleets for all runs of a module; each run gets a journal and a weight store of its own by `fresh`."""
    crew = start_crew(settings, tmp_path_factory.mktemp("crew"))
    yield crew
    crew.dismiss()


def fresh(crew: Crew, directory: Path, settings: RunSettings) -> Crew:
    """The fleets of `crew` with a new journal and a new weight store."""
    return replace(crew, store=start_weight_store(), journal=start_journal(directory, settings))


def metrics_in(directory: Path) -> list[dict[str, Any]]:
    """The metrics of every iteration."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
