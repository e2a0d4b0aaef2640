"""How the rollouts of a step-wise method went, step by step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.reduction import sum_over_workers

_STEP_SUMS = ("pairs", "ties", "score", "gap", "accepted", "move")


def rollout_diagnostics(table: pa.Table, trained_steps: Sequence[int]) -> dict[str, Any]:
    """How the rollouts of an iteration, or of a minibatch, went over all workers, from each one's share of the records.

    Returns:
        reward: mean reward of the finished images;
        tie_rate: share of pairs without a preference; and, by trained step from noisy to clean, lists of
        step_reward (mean of both candidates' step-wise rewards), step_gap (winner over loser, before guidance) and
        step_tie_rate; with guidance also step_accepted (share of moves that raised the reward) and step_move
        (mean of ||w+ - w|| / (std sqrt(d))). NaN at a step without records.
    """
    sums = torch.zeros(len(trained_steps) + 1, len(_STEP_SUMS), dtype=torch.float64)
    steps = _column(table, "step")
    columns = _step_columns(table)
    for index, step in enumerate(trained_steps):
        sums[index] = torch.from_numpy(columns[:, steps == step].sum(axis=1))
    final = _column(table, "final_reward")
    guided = len(table) - table["guidance_move"].null_count
    totals = [len(final), float(final.astype(np.float64).sum()), guided]
    sums[-1, :3] = torch.tensor(totals, dtype=torch.float64)
    return _rollout_means(sum_over_workers(sums))


def _step_columns(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Addends of _STEP_SUMS, (6, N) float64."""
    ranked, loser = _column(table, "ranked_winner_score"), _column(table, "loser_score")
    columns = [
        np.ones(len(table)),
        _column(table, "tie"),
        (ranked + loser) / 2,
        ranked - loser,
        np.nan_to_num(_column(table, "guidance_accepted").astype(np.float64)),
        np.nan_to_num(_column(table, "guidance_move").astype(np.float64)),
    ]
    return np.stack([column.astype(np.float64) for column in columns])


def _rollout_means(sums: Tensor) -> dict[str, Any]:
    rows, reward, guided = sums[-1, :3]
    pairs, ties, score, gap, accepted, move = sums[:-1].T
    means: dict[str, Any] = {
        "reward": float(reward / rows),
        "tie_rate": float(ties.sum() / pairs.sum()),
        "step_reward": (score / pairs).tolist(),
        "step_gap": (gap / pairs).tolist(),
        "step_tie_rate": (ties / pairs).tolist(),
    }
    if guided > 0:
        means |= {"step_accepted": (accepted / pairs).tolist(), "step_move": (move / pairs).tolist()}
    return means


def _column(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    return table[name].to_numpy()
