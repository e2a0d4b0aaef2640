"""DDPO against its formulas."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import make_policy
from scorers import ProjectionScorer
from settings import miniature_settings

from pipeline.checkpoint import Position, pack_checkpoint, unpack_checkpoint
from pipeline.config import RunSettings
from pipeline.learning import Learner
from pipeline.methods.ddpo import DDPO, ddpo_loss
from pipeline.prompt_statistics import PromptRewardHistory
from pipeline.prompts import SampleBatch
from pipeline.records import latent_column

pytest_plugins = ["model_fixtures"]

BATCH = SampleBatch(iteration=3, samples=(0, 1), prompts=("a red circle", "a small blue star"))


@pytest.fixture
def run_settings(miniature_model: Path) -> RunSettings:
    return miniature_settings(
        miniature_model,
        method={"name": "ddpo"},
        rollout={"trajectories": 2, "batch_size": 2},
        learner={"minibatch_size": 8, "micro_batch_size": 3},
    )


def roll_out(run_settings: RunSettings, adapter_scale: float = 0.0) -> pa.Table:
    policy = make_policy(run_settings, adapter_scale)
    return asyncio.run(DDPO(run_settings).collect(policy, ProjectionScorer(), BATCH, 5))


@settings(max_examples=100, deadline=None)
@given(st.floats(-1, 1), st.floats(-5, 5), st.sampled_from([1e-4, 0.2]))
def test_the_clipped_surrogate(log_ratio: float, advantage: float, clip: float) -> None:
    log_ratios, advantages = (torch.tensor([value], dtype=torch.float64) for value in (log_ratio, advantage))
    loss = ddpo_loss(log_ratios, advantages, clip).item()
    ratio = math.exp(log_ratio)
    clipped = min(max(ratio, 1 - clip), 1 + clip)
    assert loss == pytest.approx(-min(ratio * advantage, clipped * advantage), abs=1e-12)


@pytest.mark.parametrize(("log_ratio", "advantage", "moves"), [(0.1, 1, False), (-0.1, 1, True), (0.1, -1, True)])
def test_no_gradient_beyond_the_clip_where_it_would_go_on_improving(log_ratio, advantage, moves) -> None:
    log_ratios = torch.tensor([log_ratio], requires_grad=True)
    ddpo_loss(log_ratios, torch.tensor([float(advantage)]), 1e-4).backward()
    assert bool(log_ratios.grad != 0) is moves


def test_the_ratio_is_one_before_the_first_step(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, 0.2)
    learner = Learner(make_policy(run_settings, 0.2), run_settings)
    metrics = learner.learn(table, 3)
    assert metrics["squared_log_ratio"] < 1e-11
    assert metrics["clipped_share"] == 0
    assert metrics["gradient_norm"] > 0


def test_a_trajectory_goes_on_from_its_own_draw(run_settings: RunSettings) -> None:
    table = roll_out(run_settings, 0.2)
    assert table.column_names == [
        *("row", "iteration", "policy_version", "sample", "prompt", "step"),
        *("x_t", "x_s", "log_prob", "reward"),
    ]
    assert (latent_column(table, "x_s")[:-2] == latent_column(table, "x_t")[2:]).all()
    final = asyncio.run(ProjectionScorer().score(torch.from_numpy(latent_column(table, "x_s")[-2:]), BATCH.prompts, 0))
    assert table["reward"].to_pylist() == pytest.approx(final.tolist() * 4)


def test_few_rewards_of_a_prompt_are_compared_with_all(run_settings: RunSettings) -> None:
    history = PromptRewardHistory(length=4, enough=3)
    assert history.advantages(["a", "b"], [1.0, 3.0]) == pytest.approx([-1.0, 1.0], abs=1e-5)
    told = history.advantages(["a", "a", "b"], [2.0, 6.0, 10.0])
    of_a = np.array([1.0, 2.0, 6.0])
    assert told[:2] == pytest.approx(((np.array([2.0, 6.0]) - of_a.mean()) / of_a.std()).tolist(), rel=1e-5)
    everyone = np.array([2.0, 6.0, 10.0])
    assert told[2] == pytest.approx((10 - everyone.mean()) / everyone.std(), rel=1e-5)


def test_a_history_forgets_the_oldest() -> None:
    history = PromptRewardHistory(length=2, enough=1)
    history.advantages(["a"] * 3, [100.0, 1.0, 3.0])
    assert history.state() == {"a": [1.0, 3.0]}


def test_advantages_are_clamped(run_settings: RunSettings) -> None:
    strict = run_settings.method.model_copy(update={"advantage_clip": 0.5})
    rows = DDPO(run_settings.model_copy(update={"method": strict})).trainable_rows(roll_out(run_settings))
    assert sorted(set(rows["advantage"].tolist())) == [-0.5, 0.5]
    assert rows["advantage"][rows["sample"] == 0].unique().numel() == 1


def test_a_resumed_run_knows_the_rewards_of_every_prompt(run_settings: RunSettings) -> None:
    table = roll_out(run_settings)
    whole, resumed = (Learner(make_policy(run_settings), run_settings) for _ in range(2))
    whole.learn(table, 3)
    unpack_checkpoint(resumed, pack_checkpoint(whole, Position(4, 4)))
    assert whole.method.state() == resumed.method.state() != {}
    assert whole.learn(table, 4) == resumed.learn(table, 4)
