"""How often does guidance raise the winner's reward, and how far does it move it (Table 1)?"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.claims.intervals import interval_over_prompts
from pipeline.method_settings import TailorPOSettings
from pipeline.methods.tailorpo import collect
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch
from pipeline.scoring import AsyncScorer

COLUMNS = ["prompt", "step", "guidance_accepted", "guidance_move"]

PAPER_SHARES = {20: 0.83, 16: 0.97, 12: 0.98, 8: 0.99, 4: 0.99}
"""Table 1 of arXiv:2502.01667, by the steps that remain of 20."""


async def measure_guidance(
    policy: Policy,
    scorer: AsyncScorer,
    batch: SampleBatch,
    run_seed: int,
    method: TailorPOSettings,
    reward_scale: float,
) -> pa.Table:
    """Roll out TailorPO-G, and keep of its records what tells how guidance went."""
    assert method.guidance is not None, "the caller asks for guidance"
    table = await collect(policy, scorer, batch, method, run_seed, reward_scale, policy_version=0)
    return table.select(COLUMNS)


def guidance_rows(table: pa.Table, num_steps: int, seed: int) -> list[dict[str, Any]]:
    """By step from noisy to clean: the share of winners whose reward rose, and ||w+ - w|| / (std sqrt(d)).

    Both are of proposed moves, with intervals over prompts.
    """
    rows = []
    for step in sorted(set(table["step"].to_pylist())):
        chosen = table.filter(pc.equal(table["step"], step))
        prompts = chosen["prompt"].to_pylist()
        raised = np.array(chosen["guidance_accepted"].to_pylist(), dtype=np.float64)
        move = np.array(chosen["guidance_move"].to_pylist(), dtype=np.float64)
        rows.append(
            {
                "remaining_steps": num_steps - step,
                "raised": interval_over_prompts(raised, prompts, seed),
                "move": interval_over_prompts(move, prompts, seed),
                "samples": len(prompts),
            }
        )
    return rows
