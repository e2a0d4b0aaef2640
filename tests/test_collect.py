"""Rollouts: which candidate continues, what is recorded, ties, and independence of the company a sample is in."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from in_process import load_scorer
from policies import make_policy
from scorers import ConstantScorer, MisleadingScorer, ProjectionScorer, TimekeepingScorer, YieldingScorer
from settings import miniature_settings
from torch import Tensor

from pipeline.config import RunSettings
from pipeline.methods.tailorpo import collect, trained_strengths
from pipeline.noise import INITIAL_STEP, SampleNoise
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch
from pipeline.records import latent_column
from pipeline.scoring import AsyncScorer
from pipeline.step_diagnostics import rollout_diagnostics
from pipeline.step_preferences import trainable_pairs
from pipeline.transitions import gaussian_log_prob

pytest_plugins = ["model_fixtures"]

PROMPTS = ("a red circle", "a small blue star", "a large green ring", "a purple cross")
BATCH = SampleBatch(iteration=3, samples=(0, 1, 2, 3), prompts=PROMPTS)
LATER_BATCH = SampleBatch(iteration=3, samples=(4, 5, 6, 7), prompts=PROMPTS[::-1])


@pytest.fixture(scope="module")
def run_settings(miniature_model: Path) -> RunSettings:
    return miniature_settings(
        miniature_model, sampling={"num_steps": 6}, method={"trained_steps": [6, 4, 2]}, learner={"minibatch_size": 12}
    )


@pytest.fixture(scope="module")
def policy(run_settings: RunSettings) -> Policy:
    """Frozen, and moved away from the reference."""
    policy = make_policy(run_settings, adapter_scale=0.2)
    policy.freeze()
    return policy


def with_method(run_settings: RunSettings, **changes: Any) -> RunSettings:
    values = run_settings.model_dump(mode="json")
    return RunSettings.model_validate(values | {"method": values["method"] | changes})


async def collected(
    policy: Policy, scorer: AsyncScorer, run_settings: RunSettings, batch: SampleBatch = BATCH
) -> pa.Table:
    return await collect(policy, scorer, batch, run_settings.method, run_settings.seed, 1.0, policy_version=5)


def columns_of(table: pa.Table, step: int) -> dict[str, Tensor]:
    """The latents (B, C, H, W) and scores (B,) recorded at a grid step, in the order of samples."""
    rows = table.filter(pc.field("step") == step)
    latents = {
        name: torch.from_numpy(latent_column(rows, name)) for name in ("x_t", "winner", "loser", "reference_mean")
    }
    numbers = {
        name: torch.from_numpy(rows[name].to_numpy().copy())
        for name in rows.schema.names
        if pa.types.is_floating(rows.schema.field(name).type)
    }
    return latents | numbers


@pytest.fixture(scope="module")
def table(policy: Policy, run_settings: RunSettings) -> pa.Table:
    return asyncio.run(collected(policy, ProjectionScorer(), run_settings))


def test_a_row_for_every_sample_and_trained_step(table: pa.Table) -> None:
    assert len(table) == 12
    assert sorted(table["row"].to_pylist()) == list(range(12))
    assert set(zip(table["sample"].to_pylist(), table["step"].to_pylist(), strict=True)) == {
        (sample, step) for sample in range(4) for step in (0, 2, 4)
    }
    for row in table.select(["row", "sample", "step", "prompt", "iteration", "policy_version"]).to_pylist():
        assert row["row"] == row["sample"] * 3 + row["step"] // 2
        assert row["prompt"] == PROMPTS[row["sample"]]
        assert (row["iteration"], row["policy_version"]) == (3, 5)


def test_both_candidates_are_draws_of_the_policy_from_the_same_latents(
    table: pa.Table, policy: Policy, run_settings: RunSettings
) -> None:
    noise = SampleNoise(run_settings.seed, 3, BATCH.samples)
    for step in (0, 2, 4):
        columns = columns_of(table, step)
        mean, std = policy.transition.mean_std(policy.predict(columns["x_t"], step, PROMPTS), columns["x_t"], step)
        first, second = (mean + std * noise.draw(policy.latent_shape, step, draw) for draw in (0, 1))
        first_won = torch.isclose(columns["winner"], first, atol=1e-4).flatten(1).all(1)
        winner = torch.where(first_won[:, None, None, None], first, second)
        loser = torch.where(first_won[:, None, None, None], second, first)
        torch.testing.assert_close(columns["winner"], winner, rtol=0, atol=1e-4)
        torch.testing.assert_close(columns["loser"], loser, rtol=0, atol=1e-4)


def test_the_winner_is_the_one_with_the_higher_step_wise_reward(table: pa.Table, policy: Policy) -> None:
    for step in (0, 2, 4):
        columns = columns_of(table, step)
        for name in ("winner", "loser"):
            x0 = policy.transition.predict_x0(policy.predict(columns[name], step + 1, PROMPTS), columns[name], step + 1)
            scores = asyncio.run(ProjectionScorer().score(x0, PROMPTS, policy.transition.timestep(step + 1)))
            torch.testing.assert_close(columns[f"{name}_score"], scores, rtol=0, atol=1e-4)
        assert (columns["winner_score"] > columns["loser_score"]).all()
        assert torch.equal(columns["winner_score"], columns["ranked_winner_score"])


@pytest.mark.parametrize(("guidance", "scorings"), [(None, 1), ({}, 3)], ids=["TailorPO", "TailorPO-G"])
def test_the_scorer_is_told_the_time_of_the_network_call_that_predicted(
    run_settings: RunSettings, guidance: dict[str, float] | None, scorings: int
) -> None:
    policy = make_policy(run_settings, adapter_scale=0.2)
    scorer = TimekeepingScorer(ProjectionScorer(), policy.unet)
    asyncio.run(collected(policy, scorer, with_method(run_settings, guidance=guidance)))
    assert scorer.told[:-1] == scorer.called[:-1], "every predicted image has the time of its own prediction"
    assert scorer.told[-1] == 0, "the finished image has time 0"
    assert len(scorer.told) == 3 * scorings + 1
    assert len(set(scorer.told)) == 4


@pytest.mark.parametrize("guidance", [None, {"eta_min": 0.5, "eta_max": 1.0}])
def test_the_winner_continues(policy: Policy, run_settings: RunSettings, guidance: dict[str, float] | None) -> None:
    settings = with_method(run_settings, guidance=guidance)
    scorer = MisleadingScorer([False, True, False, True])  # guided winners and untouched ones
    table = asyncio.run(collected(policy, scorer, settings))
    noise, shape = SampleNoise(settings.seed, 3, BATCH.samples), policy.latent_shape
    assert torch.equal(columns_of(table, 0)["x_t"], noise.draw(shape, INITIAL_STEP))
    for step in (0, 2, 4):
        winner = columns_of(table, step)["winner"]
        mean, std = policy.transition.mean_std(policy.predict(winner, step + 1, PROMPTS), winner, step + 1)
        following = mean + std * noise.draw(shape, step + 1)
        if step == 4:
            final = asyncio.run(scorer.score(following, PROMPTS, timestep=0))
            torch.testing.assert_close(columns_of(table, 4)["final_reward"], final, rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(columns_of(table, step + 2)["x_t"], following, rtol=0, atol=1e-4)


def test_the_reference_is_the_base_model(table: pa.Table, run_settings: RunSettings) -> None:
    base = make_policy(run_settings)  # a fresh adapter is zero
    for step in (0, 2, 4):
        columns = columns_of(table, step)
        mean, std = base.transition.mean_std(base.predict(columns["x_t"], step, PROMPTS), columns["x_t"], step)
        torch.testing.assert_close(columns["reference_mean"], mean, rtol=0, atol=1e-5)
        for name in ("winner", "loser"):
            found, expected = columns[f"reference_log_prob_{name}"], gaussian_log_prob(columns[name], mean, std)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_ties_are_counted_and_not_trained_on(policy: Policy, run_settings: RunSettings) -> None:
    table = asyncio.run(collected(policy, ConstantScorer(), run_settings))
    assert table["tie"].to_pylist() == [True] * 12
    assert len(trainable_pairs(table)) == 0
    assert rollout_diagnostics(table, run_settings.trained_grid_steps)["tie_rate"] == 1.0


def test_a_minimum_gap_makes_ties_of_close_pairs(policy: Policy, run_settings: RunSettings, table: pa.Table) -> None:
    gaps = sorted(
        winner - loser
        for winner, loser in zip(table["winner_score"].to_pylist(), table["loser_score"].to_pylist(), strict=True)
    )
    between = (gaps[4] + gaps[5]) / 2
    strict = asyncio.run(collected(policy, ProjectionScorer(), with_method(run_settings, min_gap=between)))
    assert sum(strict["tie"].to_pylist()) == 5
    assert len(trainable_pairs(strict)) == 7
    assert not any(table["tie"].to_pylist())


def test_a_tie_is_a_tie_even_where_guidance_raised_the_winner(policy: Policy, run_settings: RunSettings) -> None:
    guidance = {"eta_min": 1.0, "eta_max": 1.0}
    free = asyncio.run(collected(policy, ProjectionScorer(), with_method(run_settings, guidance=guidance)))
    first = free.filter(pc.field("row") == 0).to_pylist()[0]
    ranked_gap = first["ranked_winner_score"] - first["loser_score"]
    guided_gap = first["winner_score"] - first["loser_score"]
    assert first["guidance_accepted"]
    assert guided_gap > ranked_gap
    between = (ranked_gap + guided_gap) / 2
    strict = with_method(run_settings, guidance=guidance, min_gap=between)
    table = asyncio.run(collected(policy, ProjectionScorer(), strict))
    assert table.filter(pc.field("row") == 0)["tie"].to_pylist() == [True]


@pytest.mark.parametrize("guidance", [None, {}])
def test_a_sample_does_not_depend_on_its_batch(
    policy: Policy, run_settings: RunSettings, guidance: dict[str, float] | None
) -> None:
    settings = with_method(run_settings, guidance=guidance)
    together = asyncio.run(collected(policy, ProjectionScorer(), settings)).sort_by("row")
    parts = [
        SampleBatch(3, (2, 0), (PROMPTS[2], PROMPTS[0])),
        SampleBatch(3, (3,), PROMPTS[3:]),
        SampleBatch(3, (1,), PROMPTS[1:2]),
    ]
    apart = pa.concat_tables(
        asyncio.run(collected(policy, ProjectionScorer(), settings, part)) for part in parts
    ).sort_by("row")
    for name in ("row", "sample", "step", "prompt", "tie", "guidance_accepted"):
        assert apart[name].to_pylist() == together[name].to_pylist()
    for name in ("x_t", "winner", "loser", "reference_mean"):
        ours, theirs = (torch.from_numpy(latent_column(rows, name)) for rows in (apart, together))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("guidance", [None, {}])
def test_interleaved_batches_equal_batches_one_after_the_other(
    policy: Policy, miniature_clip: Path, run_settings: RunSettings, guidance: dict[str, float] | None
) -> None:
    settings = with_method(run_settings, guidance=guidance).model_copy(
        update={"reward": run_settings.reward.model_copy(update={"name": "clip", "path": str(miniature_clip)})}
    )
    scorer, journal = load_scorer(settings), []

    async def both() -> list[pa.Table]:
        names = {"first": BATCH, "second": LATER_BATCH}
        return await asyncio.gather(
            *(
                collected(policy, YieldingScorer(scorer, name, journal), settings, batch)
                for name, batch in names.items()
            )
        )

    interleaved = asyncio.run(both())
    names = [name for name, _ in journal]
    assert names == ["first", "second"] * (len(names) // 2), "the batches took turns at every score"
    assert all(grad_enabled for _, grad_enabled in journal), "grad mode is what it was wherever others may run"
    assert torch.is_grad_enabled()
    for table, batch in zip(interleaved, (BATCH, LATER_BATCH), strict=True):
        assert table.equals(asyncio.run(collected(policy, scorer, settings, batch)))


def test_a_run_of_the_same_seed_is_the_same_to_the_last_bit_and_another_is_not(
    policy: Policy, run_settings: RunSettings, table: pa.Table
) -> None:
    assert table.equals(asyncio.run(collected(policy, ProjectionScorer(), run_settings)))
    other = run_settings.model_copy(update={"seed": 8})
    assert not table.equals(asyncio.run(collected(policy, ProjectionScorer(), other)))


def test_strengths_follow_the_trained_steps_from_noisy_to_clean(run_settings: RunSettings) -> None:
    assert trained_strengths(run_settings.method, 6) == {0: 0.0, 2: 0.0, 4: 0.0}
    guided = with_method(run_settings, guidance={"eta_min": 0.1, "eta_max": 0.3}).method
    assert list(trained_strengths(guided, 6)) == [0, 2, 4]
    assert list(trained_strengths(guided, 6).values()) == pytest.approx([0.1, 0.2, 0.3])
