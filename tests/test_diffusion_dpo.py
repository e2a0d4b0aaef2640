"""Diffusion-DPO against its formulas."""

import asyncio
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from miniature import write_pipeline
from policies import make_policy
from preference_files import pair
from scorers import ConstantScorer
from settings import miniature_settings

from pipeline.config import RunSettings
from pipeline.learning import Learner
from pipeline.methods.diffusion_dpo import DiffusionDPO, diffusion_dpo_loss
from pipeline.policy import Policy
from pipeline.preference_pairs import clean_pairs
from pipeline.prompts import SampleBatch
from pipeline.records import latent_column, record_rows
from pipeline.training_record import training_record

pytest_plugins = ["model_fixtures"]

ERRORS = st.floats(0, 0.01)


def batch_of(samples: tuple[int, ...], iteration: int = 3) -> SampleBatch:
    """Pairs whose images and prompts follow from their sample."""
    rows = clean_pairs(pa.Table.from_pylist([pair(sample + 1) for sample in samples]))
    return SampleBatch(iteration, samples, tuple(rows["prompt"].to_pylist()), rows)


def run_settings(model: Path, **method: object) -> RunSettings:
    return miniature_settings(
        model,
        method={"name": "diffusion_dpo", "data": "nowhere"} | method,
        rollout={"trajectories": 8, "batch_size": 8},
        learner={"minibatch_size": 4, "micro_batch_size": 3},
    )


def roll_out(run: RunSettings, policy: Policy, batch: SampleBatch) -> pa.Table:
    return asyncio.run(DiffusionDPO(run).collect(policy, ConstantScorer(), batch, 5))


@settings(max_examples=50, deadline=None)
@given(ERRORS, ERRORS, ERRORS, ERRORS)
def test_the_loss_of_four_errors(winner: float, loser: float, reference_winner: float, reference_loser: float) -> None:
    four = [torch.tensor([value], dtype=torch.float64) for value in (winner, loser, reference_winner, reference_loser)]
    losses, margins = diffusion_dpo_loss(*four, beta=500.0)
    gap = (winner - loser) - (reference_winner - reference_loser)
    assert margins.item() == pytest.approx(-gap / 2, abs=1e-12)
    assert losses.item() == pytest.approx(math.log1p(math.exp(250.0 * gap)), rel=1e-9)


def test_its_own_papers_beta_is_the_default(miniature_model: Path) -> None:
    run = run_settings(miniature_model)
    assert run.method.beta == 5000.0
    assert run.records_per_iteration == 4 and run.trained_grid_steps == ()


def test_an_adapter_of_it_was_trained_on_no_reward(miniature_model: Path) -> None:
    assert training_record(run_settings(miniature_model)).rewards == ()
    assert [reward.name for reward in training_record(miniature_settings(miniature_model)).rewards] != []


def test_the_loss_is_ln_2_at_initialisation(miniature_model: Path) -> None:
    run = run_settings(miniature_model)
    policy = make_policy(run)
    rows = record_rows(roll_out(run, policy, batch_of((0, 1, 2, 3))))
    terms = DiffusionDPO(run).loss(policy, rows)
    # Errors differ in their last bits with the size of the batch, and beta makes much of them.
    assert terms.losses.detach().tolist() == pytest.approx([math.log(2)] * 4, abs=2e-3)
    terms.losses.sum().backward()
    gradients = [value.grad for value in policy.adapter_parameters().values()]
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_recorded_errors_are_those_of_the_formula(tmp_path: Path, prediction_type: str) -> None:
    run = run_settings(write_pipeline(tmp_path / "model", prediction_type), empty_prompts=0.0)
    policy = make_policy(run, adapter_scale=0.1)
    table = roll_out(run, policy, batch_of((0, 1)))
    noise, times = torch.from_numpy(latent_column(table, "noise")), torch.tensor(table["timestep"].to_pylist())
    # SD v1.5's schedule: betas whose square roots are evenly spaced.
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)[times].reshape(-1, 1, 1, 1)
    for name in ("winner", "loser"):
        clean = torch.from_numpy(latent_column(table, name))
        x_t = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
        targets = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": alphas.sqrt() * noise - (1 - alphas).sqrt() * clean,
        }
        with torch.no_grad(), policy.reference():
            embeddings = policy.encode_prompts(table["prompt"].to_pylist())
            output = policy.unet(x_t, times, encoder_hidden_states=embeddings).sample
        expected = ((output - targets[prediction_type]) ** 2).mean(dim=(1, 2, 3))
        assert table[f"reference_error_{name}"].to_pylist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_pair_draws_the_same_in_every_batch_and_shares_time_and_noise(miniature_model: Path) -> None:
    run = run_settings(miniature_model)
    policy = make_policy(run)
    together = roll_out(run, policy, batch_of((0, 1, 2, 3)))
    alone = roll_out(run, policy, batch_of((2,)))
    for name in ("timestep", "without_prompt"):
        assert alone[name].to_pylist() == together[name].to_pylist()[2:3]
    for name in ("winner", "loser", "noise"):
        assert latent_column(alone, name)[0] == pytest.approx(latent_column(together, name)[2], abs=1e-5)
    later = roll_out(run, policy, batch_of((0, 1, 2, 3), iteration=4))
    assert later["timestep"].to_pylist() != together["timestep"].to_pylist()
    assert together.column_names[:6] == ["row", "iteration", "policy_version", "sample", "prompt", "step"]
    assert together["step"].to_pylist() == [-1] * 4 and together["row"].to_pylist() == [0, 1, 2, 3]


def test_times_cover_the_schedule_and_prompts_are_dropped_as_often_as_asked(miniature_model: Path) -> None:
    run = run_settings(miniature_model, empty_prompts=0.25)
    policy, times, dropped = make_policy(run), [], []
    for iteration in range(10):
        table = roll_out(run, policy, batch_of(tuple(range(20)), iteration))
        times += table["timestep"].to_pylist()
        dropped += table["without_prompt"].to_pylist()
    assert min(times) < 50 and max(times) >= 950 and abs(sum(times) / len(times) - 500) < 100
    assert 0.1 < sum(dropped) / len(dropped) < 0.4


def test_learning_prefers_the_winner_by_one_call_for_a_pair(miniature_model: Path) -> None:
    run = run_settings(miniature_model, empty_prompts=0.0)
    policy, batch = make_policy(run), batch_of((0, 1, 2, 3), iteration=0)
    learner, table = Learner(policy, run), roll_out(run, policy, batch)
    losses = [learner.learn(table, 0)["loss"] for _ in range(20)]
    assert losses[0] == pytest.approx(math.log(2), abs=2e-3) and losses[-1] < losses[0] - 0.05
    metrics = learner.learn(table, 0)
    assert metrics["implicit_accuracy"] == 1.0 and math.isnan(metrics["reward"])
