"""What the tables tell of a finished run."""

from typing import Any

import numpy as np

from pipeline.claims.arms import Arm


def arm_row(arm: Arm, summary: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Plain values for JSON, from a run's summary.json and metrics.jsonl.

    `raised` and `move` are means over all iterations and trained steps; None without guidance.
    """
    settings = arm.settings
    guided = settings.method.needs_gradient
    return {
        "label": arm.label,
        "run": settings.name,
        "trained_steps": list(settings.trained_steps),
        "trajectories": summary["trajectories"],
        "network_calls_per_trajectory": settings.network_calls_per_trajectory,
        "optimiser_steps": summary["last_iteration"]["optimiser_steps"],
        "train_seconds": summary["train_seconds"],
        "evaluation_seconds": summary["evaluation_seconds"],
        "raised": float(np.mean([line["step_accepted"] for line in metrics])) if guided else None,
        "move": float(np.mean([line["step_move"] for line in metrics])) if guided else None,
        "rewards": summary["evaluation"],
    }
