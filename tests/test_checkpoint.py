"""Checkpoints: a learner that was put down and taken up again ends as one that was not, bit for bit."""

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from policies import make_policy
from scorers import ProjectionScorer
from settings import miniature_settings

from pipeline.adapter import flatten_adapter
from pipeline.checkpoint import (
    METHOD_FILE,
    POSITION_FILE,
    TENSORS_FILE,
    Position,
    load_average,
    pack_checkpoint,
    unpack_checkpoint,
)
from pipeline.config import RunSettings
from pipeline.learning import Learner
from pipeline.methods.tailorpo import collect
from pipeline.prompts import SampleBatch

pytest_plugins = ["model_fixtures"]

PROMPTS = ("a red circle", "a small blue star", "a large green ring", "a purple cross") * 2


@pytest.fixture(scope="module")
def run_settings(miniature_model: Path) -> RunSettings:
    return miniature_settings(miniature_model, learner={"ema_decay": 0.8, "warmup_steps": 3, "learning_rate": 0.01})


@pytest.fixture(scope="module")
def table(run_settings: RunSettings) -> pa.Table:
    policy, batch = make_policy(run_settings), SampleBatch(0, tuple(range(8)), PROMPTS)
    return asyncio.run(collect(policy, ProjectionScorer(), batch, run_settings.method, run_settings.seed, 1.0, 0))


def make_learner(run_settings: RunSettings) -> Learner:
    return Learner(make_policy(run_settings), run_settings)


def test_an_interrupted_learner_ends_as_an_uninterrupted_one(run_settings: RunSettings, table: pa.Table) -> None:
    whole, first_half, second_half = (make_learner(run_settings) for _ in range(3))
    for iteration in range(4):
        whole.learn(table, iteration)
    for iteration in range(2):
        first_half.learn(table, iteration)
    files = pack_checkpoint(first_half, Position(2, 2))
    second_half.learn(table, 9)  # a past of its own, to be forgotten
    assert unpack_checkpoint(second_half, files) == Position(next_iteration=2, policy_version=2)
    for iteration in range(2, 4):
        metrics = second_half.learn(table, iteration)
    assert metrics["optimiser_steps"] == whole.optimiser.steps_taken
    state = second_half.optimiser.state()
    for name, value in whole.optimiser.state().items():
        assert torch.equal(value, state[name]), name
    assert np.array_equal(flatten_adapter(whole.policy), flatten_adapter(second_half.policy))


def test_a_learner_can_be_taken_back_to_its_start(run_settings: RunSettings, table: pa.Table) -> None:
    learner, fresh = make_learner(run_settings), make_learner(run_settings)
    files = pack_checkpoint(learner, Position(0, 0))
    learner.learn(table, 0)
    unpack_checkpoint(learner, files)
    learner.learn(table, 1)
    fresh.learn(table, 1)
    assert np.array_equal(flatten_adapter(learner.policy), flatten_adapter(fresh.policy))


def test_torchs_random_numbers_continue(run_settings: RunSettings) -> None:
    learner = make_learner(run_settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        files = pack_checkpoint(learner, Position(1, 1))
        expected = torch.rand(3)
        torch.manual_seed(12)
        unpack_checkpoint(learner, files)
        assert torch.equal(torch.rand(3), expected)


def test_no_pickle_is_in_it(run_settings: RunSettings) -> None:
    files = pack_checkpoint(make_learner(run_settings), Position(1, 1))
    assert set(files) == {TENSORS_FILE, POSITION_FILE, METHOD_FILE}
    assert TENSORS_FILE.endswith(".safetensors")
    assert files[POSITION_FILE] == b'{"next_iteration": 1, "policy_version": 1, "seconds": 0.0}'


def test_the_average_can_be_put_in_the_adapters_place(run_settings: RunSettings, table: pa.Table) -> None:
    learner, policy = make_learner(run_settings), make_policy(run_settings)
    learner.learn(table, 0)
    load_average(policy, pack_checkpoint(learner, Position(1, 1)))
    assert learner.optimiser.average is not None
    for name, value in policy.adapter_parameters().items():
        assert torch.equal(value, learner.optimiser.average[name])
    assert not np.array_equal(flatten_adapter(policy), flatten_adapter(learner.policy))


@pytest.mark.parametrize("lora", [{"rank": 2}, {"target_modules": ["to_q"]}])
def test_a_checkpoint_of_another_adapter_is_refused(
    run_settings: RunSettings, miniature_model: Path, lora: dict[str, object]
) -> None:
    files = pack_checkpoint(make_learner(run_settings), Position(1, 1))
    other = make_learner(miniature_settings(miniature_model, lora=lora))
    before = flatten_adapter(other.policy)
    with pytest.raises(ValueError, match="holds another adapter; resume with the configuration that wrote it"):
        unpack_checkpoint(other, files)
    assert np.array_equal(flatten_adapter(other.policy), before)
