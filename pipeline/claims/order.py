"""Does the step-wise order of two candidates agree with the order of the images that become of them (Fig. 2)?"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.claims.intervals import interval_over_prompts
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch
from pipeline.scoring import AsyncScorer

FINISHES = 2
"""How often a candidate is denoised to its end: twice, to hold the order of finished images against itself."""


async def measure_orders(
    policy: Policy, scorer: AsyncScorer, batch: SampleBatch, run_seed: int, steps: Sequence[int]
) -> pa.Table:
    """Draw two candidates at each of the grid `steps` of a plain trajectory, score them there, and finish both.

    Candidate a is the trajectory's own next latent. Each is denoised to x_0 `FINISHES` times, with noise of its own.

    Returns:
        A row for each sample and step: prompt, step, step_gap (step-wise reward of a less that of b), and final_gaps
        (`FINISHES` values, the same of finished images).
    """
    prompts, noise = list(batch.prompts), SampleNoise(run_seed, batch.iteration, batch.samples)
    tables = []
    x_t = noise.draw(policy.latent_shape, INITIAL_STEP).to(policy.device)
    for step in range(max(steps) + 1):
        mean, std = policy.transition.mean_std(policy.predict(x_t, step, prompts), x_t, step)
        first, second = (mean + std * _draw(policy, noise, step, draw) for draw in (0, 1))
        if step in steps:
            tables.append(await _compare(policy, scorer, prompts, noise, torch.cat([first, second]), step))
        x_t = first
    return pa.concat_tables(tables)


def order_rows(table: pa.Table, num_steps: int, seed: int) -> list[dict[str, Any]]:
    """By step from noisy to clean: how often orders differ, with intervals over prompts; a tie counts one half.

    `disagree` compares the step-wise order with that of finished images, `final_disagree` that of finished images with
    that of the same candidates finished again.
    """
    rows = []
    for step in sorted(set(table["step"].to_pylist())):
        chosen = table.filter(pc.equal(table["step"], step))
        prompts = chosen["prompt"].to_pylist()
        gaps = np.asarray(chosen["step_gap"].to_numpy())
        finals = np.array(chosen["final_gaps"].to_pylist()).T  # (FINISHES, N)
        disagreements = [disagreement(gaps, final) for final in finals]
        of_finals = [disagreement(one, other) for one, other in combinations(finals, 2)]
        rows.append(
            {
                "remaining_steps": num_steps - step,
                "disagree": interval_over_prompts(np.mean(disagreements, axis=0), prompts, seed),
                "final_disagree": interval_over_prompts(np.mean(of_finals, axis=0), prompts, seed),
                "pairs": len(prompts),
            }
        )
    return rows


def disagreement(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of gaps (N,): 1 where their signs differ, 0 where they agree, one half where either is zero."""
    return 0.5 * (1 - np.sign(one) * np.sign(other)).astype(np.float64)


async def _compare(
    policy: Policy, scorer: AsyncScorer, prompts: list[str], noise: SampleNoise, pair: Tensor, step: int
) -> pa.Table:
    """Score a pair (2B, C, H, W) of candidates drawn at `step`, first all a then all b, there and finished."""
    both = prompts * 2
    output = policy.predict(pair, step + 1, both)
    x0_hat = policy.transition.predict_x0(output, pair, step + 1)
    step_gap = _gap(await scorer.score(x0_hat, both, policy.transition.timestep(step + 1)))
    finals = []
    for finish in range(FINISHES):
        x_0 = _finish(policy, both, noise, pair, output, step, finish)
        finals.append(_gap(await scorer.score(x_0, both, timestep=0)))
    columns = {
        "prompt": prompts,
        "step": [step] * len(prompts),
        "step_gap": step_gap.tolist(),
        "final_gaps": torch.stack(finals, dim=1).tolist(),
    }
    return pa.table(columns)


def _finish(
    policy: Policy, prompts: list[str], noise: SampleNoise, pair: Tensor, output: Tensor, origin: int, finish: int
) -> Tensor:
    """x_0 (2B, C, H, W) of candidates drawn at `origin`, of whose next step the network's `output` is known."""
    num_steps, x_t = policy.transition.num_steps, pair
    # Draws 0 and 1 are the candidates'; every origin, finish and candidate has one of its own at each later step.
    first_draw = 2 + 2 * (finish * num_steps + origin)
    for step in range(origin + 1, num_steps):
        mean, std = policy.transition.mean_std(output, x_t, step)
        draws = [_draw(policy, noise, step, first_draw + candidate) for candidate in (0, 1)]
        x_t = mean + std * torch.cat(draws)
        if step + 1 < num_steps:
            output = policy.predict(x_t, step + 1, prompts)
    return x_t


def _draw(policy: Policy, noise: SampleNoise, step: int, draw: int) -> Tensor:
    return noise.draw(policy.latent_shape, step, draw).to(policy.device)


def _gap(scores: Tensor) -> Tensor:
    """Scores (2B,) -> how far those of the first half lie above those of the second, (B,)."""
    first, second = scores.chunk(2)
    return first - second
