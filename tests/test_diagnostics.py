"""What a run tells of itself, by hand on small numbers."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.diagnostics import column_means, term_means, term_sums
from pipeline.preference_loss import clamped_share
from pipeline.prompts import SampleBatch
from pipeline.step_diagnostics import rollout_diagnostics
from pipeline.step_preferences import StepPreferences, records_table

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


NAMES = ("margin", "drift")


def test_sums_of_records_become_their_means() -> None:
    diagnostics = {"drift": torch.tensor([1.0, 2.0, 3.0]), "margin": torch.tensor([1.0, -2.0, 4.0])}
    sums = term_sums(torch.tensor([0.5, 0.7, 0.9]), diagnostics, NAMES)
    assert sums.dtype == torch.float32
    assert term_means(sums, NAMES) == pytest.approx({"pairs": 3, "loss": 0.7, "margin": 1.0, "drift": 2.0})


def test_sums_add_up_over_workers() -> None:
    losses, margins, drifts = torch.rand(6), torch.randn(6), torch.rand(6)
    parts = [
        term_sums(losses[part], {"margin": margins[part], "drift": drifts[part]}, NAMES)
        for part in (slice(0, 2), slice(2, 6))
    ]
    whole = term_sums(losses, {"margin": margins, "drift": drifts}, NAMES)
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_no_records_have_no_means() -> None:
    means = term_means(torch.zeros(4), NAMES)
    assert means.pop("pairs") == 0
    assert all(math.isnan(value) for value in means.values())


def test_the_share_of_clamped_ratios() -> None:
    winners, losers = torch.tensor([0.2, 0.0, -0.2]), torch.tensor([0.0, 0.0, 0.05])
    # log 1.1 and log 0.9 are 0.095 and -0.105
    assert clamped_share([winners, losers], 0.1).tolist() == [0.5, 0.0, 0.5]
    assert clamped_share([winners, losers], None).tolist() == [0.0, 0.0, 0.0]


def test_means_of_columns_are_over_the_records() -> None:
    assert column_means({"reward": [1.0, 2.0], "tie_rate": [True, False]}) == {"reward": 1.5, "tie_rate": 0.5}


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


def test_the_mean_reward_is_that_of_the_float32_rewards_and_no_coarser() -> None:
    table = make_table()
    rewards = np.linspace(0.1, 0.9, len(table), dtype=np.float32) / 3
    place = table.schema.get_field_index("final_reward")
    table = table.set_column(place, table.schema.field(place), pa.array(rewards))
    assert rollout_diagnostics(table, trained_steps=(0, 2))["reward"] == rewards.astype(np.float64).mean()


def test_a_step_without_records_has_no_means() -> None:
    told = rollout_diagnostics(make_table(), trained_steps=(0, 1, 2))
    assert told["tie_rate"] == 0.25
    for name, values in told.items():
        assert not name.startswith("step_") or [math.isnan(value) for value in values] == [False, True, False]


def test_without_guidance_nothing_is_said_of_it() -> None:
    told = rollout_diagnostics(make_table(guided=False), trained_steps=(0, 2))
    assert {"step_accepted", "step_move"}.isdisjoint(told)
    assert told["step_gap"] == [1.0, 2.0]
