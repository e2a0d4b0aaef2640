"""The Grafana dashboard shows what the code exports: every name, and no other. tests/test_training.py scrapes it."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from ray.util.metrics import Gauge

from actors.metrics import FLEET_COUNTERS, FLEET_GAUGES, FleetMetrics, RunMetrics, exported_names

DASHBOARD = json.loads((Path(__file__).parents[1] / "deploy" / "grafana" / "tailorpo.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAME = re.compile(r"\bray_\w+")


def test_the_dashboard_shows_every_exported_metric_and_no_other():
    queries = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["name"] == "run"]
    shown = {name for expression in [*EXPRESSIONS, *queries] for name in NAME.findall(expression)}
    assert shown == exported_names()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_looks_at_the_chosen_runs_and_treats_counters_as_such(expression):
    (name,) = NAME.findall(expression)
    assert f'{name}{{run=~"$run"}}' in expression and expression.count("(") == expression.count(")")
    is_counter, counts_starts = name.endswith("_total"), name == "ray_tailorpo_learner_starts_total"
    assert bool(re.search(r"\b(rate|increase)\(", expression)) == (is_counter and not counts_starts)


def test_no_two_panels_overlap_or_share_a_number():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What each gauge was set to last."""
    values: dict[str, float] = {}

    def set_gauge(gauge: Gauge, value: float, tags: dict[str, str] | None = None) -> None:
        labels = gauge.info["default_tags"] | (tags or {})
        assert labels.keys() == set(gauge.info["tag_keys"])
        of = "".join(f"/{label}={text}" for label, text in labels.items() if label not in ("run", "fleet"))
        values[gauge.info["name"] + of] = value

    monkeypatch.setattr(Gauge, "set", set_gauge)
    return values


def test_a_fleet_shows_each_of_its_counters(shown):
    fleet = FleetMetrics("a-run", "rollout")
    stats: dict[str, Any] = {name: number for number, name in enumerate([*FLEET_GAUGES, *FLEET_COUNTERS])}
    fleet.show(stats | {"calls": 1})
    fleet.show(stats)
    assert shown == {f"tailorpo_fleet_{name}": stats[name] for name in FLEET_GAUGES} | {
        f"tailorpo_fleet_{name}_total": stats[name] for name in FLEET_COUNTERS
    }


def test_an_iteration_shows_what_it_has_numbers_for(shown):
    before = time.time()
    run = RunMetrics("a-run")
    run.learner_began(2, None)
    assert shown == {"tailorpo_iterations": 2}
    run.iteration_ended({"iteration": 2, "reward": 0.5, "reward/clip": 0.2, "loss": 0.7, "seconds": 1.5, "margin": 1.0})
    run.iteration_ended({"iteration": 3, "reward": None, "loss": float("nan"), "seconds": 2.5})
    run.checkpoint_written()
    run.end()
    checkpoint_time = shown.pop("tailorpo_last_checkpoint_timestamp_seconds")
    assert before <= checkpoint_time <= time.time()
    assert shown == {
        "tailorpo_iterations": 4,
        "tailorpo_reward/reward=total": 0.5,
        "tailorpo_reward/reward=clip": 0.2,
        "tailorpo_loss": 0.7,
        "tailorpo_seconds": 2.5,
    }
