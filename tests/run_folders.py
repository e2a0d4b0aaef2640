"""Run folders as runs leave them, written by hand: settings of committed runs, metrics and evaluations made up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"

GUIDED, UNGUIDED = "demo", "demo-unguided"
"""Committed runs whose settings are taken; both train five steps of 20, in iterations of 64 trajectories."""


def iteration_metrics(iteration: int, reward: float | None, seconds: float = 10.0, **others: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {
        "iteration": iteration,
        "reward": reward,
        "loss": 0.69 - 0.001 * iteration,
        "implicit_accuracy": 0.5,
        "step_gap": [1.0, 2.0, 3.0, 4.0, 5.0],
        "adapter_sha256": "ab",
        "minibatches": {"loss": [0.7, 0.68], "gradient_norm": [0.5, None]},
        "rollout_seconds": 0.75 * seconds,
        "learn_seconds": 0.25 * seconds,
        "seconds": seconds,
        "time": 1.7e9,
        **others,
    }


def reward_row(difference: float, half_width: float = 0.1) -> dict[str, Any]:
    """A reward of evaluation.json."""
    return {
        "base_mean": 20.0,
        "aligned_mean": 20.0 + difference,
        "difference": difference,
        "low": difference - half_width,
        "high": difference + half_width,
        "win_rate": 0.6,
        "pairs": 128,
    }


def write_run_folder(
    folder: Path,
    rewards: list[float],
    like: str = GUIDED,
    evaluation: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run of len(rewards) iterations; `settings` replace top-level ones of the committed run `like`."""
    folder.mkdir(parents=True)
    values = yaml.safe_load((RESULTS / like / "config.yaml").read_text(encoding="utf-8"))
    values |= {"name": folder.name, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    lines = [json.dumps(iteration_metrics(index, reward)) + "\n" for index, reward in enumerate(rewards)]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return folder


def write_pictures(folder: Path, side: int = 64) -> None:
    """Sample grids before and after, and held-out pairs, of noise."""
    generator = np.random.default_rng(0)
    (folder / "samples").mkdir()
    for path in ("samples/iteration_000000.png", "samples/iteration_000020.png", "before_after.png"):
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / path)
