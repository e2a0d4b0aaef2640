"""What a run tells of itself, by hand on small numbers."""

import math
from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from pipeline.diagnostics import PAIR_SUMS, pair_means, pair_sums, rollout_diagnostics
from pipeline.prompts import SampleBatch
from pipeline.records import StepPreferences, records_table

BATCH = SampleBatch(iteration=0, samples=(0, 1), prompts=("a", "b"))


def step_preferences(step: int, ranked: list[float], loser: list[float], tie: list[bool]) -> StepPreferences:
    latents = torch.zeros(2, 1, 1, 1)
    return StepPreferences(
        step=step,
        x_t=latents,
        winner=latents,
        loser=latents,
        reference_mean=latents,
        winner_score=torch.tensor(ranked) + 100,  # guidance raised it; gaps are those of the ranking
        loser_score=torch.tensor(loser),
        ranked_winner_score=torch.tensor(ranked),
        reference_log_prob_winner=torch.zeros(2),
        reference_log_prob_loser=torch.zeros(2),
        tie=torch.tensor(tie),
        guidance_accepted=torch.tensor([True, step == 0]),
        guidance_move=torch.tensor([0.5, 1.5]) * (step + 1),
    )


def make_table(guided: bool = True) -> pa.Table:
    steps = [step_preferences(0, [3, 5], [1, 5], [False, True]), step_preferences(2, [2, 4], [1, 1], [False, False])]
    if not guided:
        steps = [replace(step, guidance_accepted=None, guidance_move=None) for step in steps]
    return records_table(steps, BATCH, torch.tensor([10.0, 20.0]), 0)


def test_sums_of_pairs_become_their_means() -> None:
    sums = pair_sums(
        losses=torch.tensor([0.5, 0.7, 0.9]),
        margins=torch.tensor([1.0, -2.0, 4.0]),
        log_ratios=torch.tensor([0.2, 0.0, -0.2, 0.0, 0.0, 0.05]),
        drifts=torch.tensor([1.0, 2.0, 3.0]),
        ratio_clip=0.1,
    )
    assert sums.dtype == torch.float32
    assert pair_means(sums) == pytest.approx(
        {
            "pairs": 3,
            "loss": 0.7,
            "implicit_accuracy": 2 / 3,
            "margin": 1.0,
            "clamped_ratios": 2 / 6,  # log 1.1 and log 0.9 are 0.095 and -0.105
            "drift": 2.0,
        }
    )


def test_without_a_clamp_no_ratio_is_clamped() -> None:
    sums = pair_sums(torch.ones(2), torch.ones(2), torch.full((4,), 9.0), torch.ones(2), None)
    assert pair_means(sums)["clamped_ratios"] == 0


def test_sums_add_up_over_workers() -> None:
    losses, margins, ratios, drifts = torch.rand(6), torch.randn(6), torch.randn(6, 2), torch.rand(6)
    parts = [
        pair_sums(losses[part], margins[part], ratios[part].flatten(), drifts[part], 0.1)
        for part in (slice(0, 2), slice(2, 6))
    ]
    whole = pair_sums(losses, margins, ratios.flatten(), drifts, 0.1)
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_no_pairs_have_no_means() -> None:
    means = pair_means(torch.zeros(len(PAIR_SUMS)))
    assert means.pop("pairs") == 0
    assert all(math.isnan(value) for value in means.values())


def test_rollouts_are_told_by_trained_step() -> None:
    assert rollout_diagnostics(make_table(), trained_steps=(0, 2)) == {
        "reward": 15.0,
        "tie_rate": 0.25,
        "step_reward": [3.5, 2.0],
        "step_gap": [1.0, 2.0],
        "step_tie_rate": [0.5, 0.0],
        "step_accepted": [1.0, 0.5],
        "step_move": [1.0, 3.0],
    }


def test_without_guidance_nothing_is_said_of_it() -> None:
    told = rollout_diagnostics(make_table(guided=False), trained_steps=(0, 2))
    assert {"step_accepted", "step_move"}.isdisjoint(told)
    assert told["step_gap"] == [1.0, 2.0]
