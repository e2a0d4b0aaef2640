"""The smallest whole run: a miniature model, two trained steps of four, JPEG as the reward."""

from pathlib import Path
from typing import Any

from pipeline.config import RunSettings
from pipeline.config_loading import parse_settings


def miniature_values(model: Path, /, **sections: Any) -> dict[str, Any]:
    """Plain values of a run on the miniature model; `sections` are merged over the defaults, section by section."""
    values: dict[str, Any] = {
        "name": "miniature",
        "seed": 7,
        "iterations": 2,
        # Also where there is a GPU: what its kernels round otherwise is not what most tests are about.
        "model": {"path": str(model), "device": "cpu"},
        "sampling": {"num_steps": 4, "guidance_scale": 2.0},
        "method": {"trained_steps": [4, 2]},
        "reward": {"name": "jpeg_compressibility"},
        "prompts": {"train": "demo", "held_out": "demo"},
        "rollout": {"trajectories": 8, "batch_size": 4, "num_cpus": 0.1},
        "reward_actors": {"num_cpus": 0.1},
        "learner": {"minibatch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3, "num_cpus": 0.1},
        "samples": {"every": 2, "count": 4},
        "evaluation": {"images": 0},
    }
    for name, section in sections.items():
        if isinstance(section, dict) and section.get("name") in (None, values.get(name, {}).get("name", "tailorpo")):
            section = values.get(name, {}) | section
        values[name] = section
    return values


def miniature_settings(model: Path, /, **sections: Any) -> RunSettings:
    """`miniature_values`, checked."""
    return parse_settings(miniature_values(model, **sections))
