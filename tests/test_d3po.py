"""D3PO against its formulas."""

import asyncio
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import make_policy
from scorers import ConstantScorer, ProjectionScorer
from settings import miniature_settings

from pipeline.adapter import flatten_adapter
from pipeline.config import RunSettings
from pipeline.learning import Learner
from pipeline.methods.d3po import D3PO, d3po_loss
from pipeline.noise import SampleNoise
from pipeline.prompts import SampleBatch
from pipeline.records import latent_column
from pipeline.scoring import AsyncScorer
from pipeline.transitions import gaussian_log_prob

pytest_plugins = ["model_fixtures"]

BATCH = SampleBatch(iteration=3, samples=(0, 1), prompts=("a red circle", "a small blue star"))
LOG_PROBS = st.floats(-3, 3, allow_nan=False)


@pytest.fixture
def run_settings(miniature_model: Path) -> RunSettings:
    return miniature_settings(
        miniature_model,
        method={"name": "d3po"},
        rollout={"trajectories": 4, "batch_size": 4},
        learner={"minibatch_size": 8},
    )


def roll_out(run_settings: RunSettings, adapter_scale: float, scorer: AsyncScorer) -> pa.Table:
    policy = make_policy(run_settings, adapter_scale)
    return asyncio.run(D3PO(run_settings).collect(policy, scorer, BATCH, 5))


@settings(max_examples=50, deadline=None)
@given(LOG_PROBS, LOG_PROBS, LOG_PROBS, LOG_PROBS)
def test_the_loss_of_four_log_probabilities(winner, loser, reference_winner, reference_loser) -> None:
    four = [torch.tensor([value], dtype=torch.float64) for value in (winner, loser, reference_winner, reference_loser)]
    loss, _ = d3po_loss(*four, beta=0.5, ratio_clip=None)
    logit = 0.5 * ((winner - reference_winner) - (loser - reference_loser))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-logit)), rel=1e-9)
    clamped, _ = d3po_loss(*four, beta=0.5, ratio_clip=0.1)
    low, high = math.log(0.9), math.log(1.1)
    ratios = (min(max(ratio, low), high) for ratio in (winner - reference_winner, loser - reference_loser))
    logit = 0.5 * (next(ratios) - next(ratios))
    assert clamped.item() == pytest.approx(math.log1p(math.exp(-logit)), rel=1e-9)


def test_the_loss_is_ln_2_at_initialisation(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, 0.0, ProjectionScorer())
    metrics = Learner(make_policy(run_settings), run_settings).learn(table, 3)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["clamped_ratios"] == 0


def test_both_trajectories_share_the_first_latent_and_nothing_else(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, 0.2, ProjectionScorer())
    assert table["row"].to_pylist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert table["step"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3]
    latents = {name: latent_column(table, name) for name in ("winner_x_t", "winner_x_s", "loser_x_t", "loser_x_s")}
    assert (latents["winner_x_t"][:2] == latents["loser_x_t"][:2]).all()
    noise = SampleNoise(run_settings.seed, 3, BATCH.samples).draw((4, 8, 8), -1).numpy()
    assert (latents["winner_x_t"][:2] == noise).all()
    for who in ("winner", "loser"):
        assert (latents[f"{who}_x_s"][:-2] == latents[f"{who}_x_t"][2:]).all(), "each goes its own way"
    assert not (latents["winner_x_s"] == latents["loser_x_s"]).any()


def test_the_better_final_image_wins_every_step(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, 0.2, ProjectionScorer())
    assert (table["winner_reward"].to_numpy() > table["loser_reward"].to_numpy()).all()
    ends = {who: torch.from_numpy(latent_column(table, f"{who}_x_s")[-2:]) for who in ("winner", "loser")}
    for who, end in ends.items():
        expected = asyncio.run(ProjectionScorer().score(end, BATCH.prompts, 0))
        torch.testing.assert_close(torch.from_numpy(table[f"{who}_reward"].to_numpy()[-2:].copy()), expected)


def test_recorded_reference_log_probabilities_are_those_of_the_reference(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, 0.2, ProjectionScorer())
    policy = make_policy(run_settings, 0.2)
    steps = torch.tensor(table["step"].to_pylist())
    for who in ("winner", "loser"):
        x_t, x_s = (torch.from_numpy(latent_column(table, f"{who}_{name}")) for name in ("x_t", "x_s"))
        mean, std = policy.transition.mean_std(
            policy.predict_reference(x_t, steps, table["prompt"].to_pylist()), x_t, steps
        )
        found = torch.from_numpy(table[f"reference_log_prob_{who}"].to_numpy().copy())
        torch.testing.assert_close(found, gaussian_log_prob(x_s, mean, std), rtol=1e-4, atol=1e-5)


def test_ties_teach_nothing(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, 0.2, ConstantScorer())
    learner = Learner(make_policy(run_settings), run_settings)
    before = flatten_adapter(learner.policy)
    metrics = learner.learn(table, 3)
    assert metrics["tie_rate"] == 1.0
    assert (flatten_adapter(learner.policy) == before).all()


def test_learning_raises_the_winners_above_the_losers(run_settings: RunSettings) -> None:
    eager = run_settings.model_copy(
        update={"learner": run_settings.learner.model_copy(update={"inner_epochs": 6, "learning_rate": 0.003})}
    )
    table = roll_out(eager, 0.0, ProjectionScorer())
    learner = Learner(make_policy(eager), eager)
    learner.learn(table, 3)
    after = learner.learn(table, 4)
    assert after["margin"] > 0
    assert after["loss"] < math.log(2)
