"""Comparisons of miniature runs."""

from pathlib import Path
from typing import Any

import yaml
from settings import miniature_values

from pipeline.comparison.plan import Plan, make_plan
from pipeline.comparison.settings import ComparisonSettings
from pipeline.config_loading import parse_as


def comparison_values(base: Path, /, **sections: Any) -> dict[str, Any]:
    """Plain values: two variants, a sweep of two learning rates, two seeds; an iteration of either costs 80 calls."""
    values: dict[str, Any] = {
        "name": "comparison",
        "output_dir": str(base.parent),
        "base": str(base),
        "variants": [
            {"label": "TailorPO"},
            {"label": "TailorPO, β 1", "overrides": ["method.beta=1"]},
        ],
        "seeds": [0, 1],
        "budget": {"unit": "network_calls", "amount": 240},
        "sweep": {"learning_rates": [0.01, 0.001], "budget_share": 0.5, "images": 4},
    }
    return values | sections


def write_base(directory: Path, model: Path = Path("some/model"), **sections: Any) -> Path:
    """The configuration that the runs begin from; it reports a reward that no run is trained on."""
    base = directory / "base.yaml"
    values = miniature_values(model, **sections)
    values["evaluation"].setdefault("rewards", [{"name": "jpeg_incompressibility"}])
    base.write_text(yaml.safe_dump(values), encoding="utf-8")
    return base


def make_comparison(directory: Path, **sections: Any) -> ComparisonSettings:
    """`comparison_values`, checked."""
    return parse_as(ComparisonSettings, comparison_values(write_base(directory), **sections))


def plan_of(directory: Path, **sections: Any) -> Plan:
    """The plan of `comparison_values`, in `directory`/comparison."""
    return make_plan(make_comparison(directory, **sections), directory / "comparison")
