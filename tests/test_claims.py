"""The claims: what is measured, how it becomes numbers, and which runs are compared."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import make_policy
from scorers import CountingScorer, ProjectionScorer
from settings import miniature_settings, miniature_values

from pipeline.claims import TABLES
from pipeline.claims.arms import evenly_spread, step_arms, strength_arms
from pipeline.claims.guided import guidance_rows, measure_guidance
from pipeline.claims.order import FINISHES, disagreement, measure_orders, order_rows
from pipeline.claims.page import least_disagreement
from pipeline.claims.plan import ClaimsPlan
from pipeline.config import RunSettings
from pipeline.config_loading import parse_settings
from pipeline.methods.tailorpo import collect
from pipeline.policy import Policy
from pipeline.prompts import SampleBatch

pytest_plugins = ["model_fixtures"]

PROMPTS = ("a red circle", "a small blue star", "a large green ring", "a purple cross")
BATCH = SampleBatch(iteration=0, samples=(0, 1, 2, 3), prompts=PROMPTS)
STEPS = (0, 2, 4)  # grid steps of six


def run_settings(model: Path, **sampling: Any) -> RunSettings:
    return miniature_settings(
        model,
        sampling={"num_steps": 6, **sampling},
        method={"trained_steps": [6, 4, 2], "guidance": {}},
        learner={"minibatch_size": 12},
    )


@pytest.fixture(scope="module")
def policy(miniature_model: Path) -> Policy:
    policy = make_policy(run_settings(miniature_model))
    policy.freeze()
    return policy


def orders(policy: Policy, batch: SampleBatch = BATCH, scorer: Any = None) -> pa.Table:
    return asyncio.run(measure_orders(policy, scorer or ProjectionScorer(), batch, 7, STEPS))


def final_gaps(table: pa.Table) -> np.ndarray:
    return np.array(table["final_gaps"].to_pylist())


# Orders


def test_the_candidates_are_those_that_tailorpo_ranks(policy: Policy, miniature_model: Path) -> None:
    method = run_settings(miniature_model).method.model_copy(update={"guidance": None})
    records = asyncio.run(collect(policy, ProjectionScorer(), BATCH, method, 7, 1.0, 0))
    ranked = records.filter(pc.field("step") == 0)
    gaps = ranked["ranked_winner_score"].to_numpy() - ranked["loser_score"].to_numpy()
    measured = orders(policy).filter(pc.field("step") == 0)
    assert measured["prompt"].to_pylist() == ranked["prompt"].to_pylist() == list(PROMPTS)
    np.testing.assert_allclose(np.abs(measured["step_gap"].to_numpy()), gaps, rtol=1e-5, atol=1e-6)


def test_a_sample_is_measured_alike_in_any_company(policy: Policy) -> None:
    halves = [SampleBatch(0, BATCH.samples[part], PROMPTS[part]) for part in (slice(0, 2), slice(2, 4))]
    key = [("step", "ascending"), ("prompt", "ascending")]
    together, apart = (
        orders(policy).sort_by(key),
        pa.concat_tables([orders(policy, half) for half in halves]).sort_by(key),
    )
    np.testing.assert_allclose(together["step_gap"].to_numpy(), apart["step_gap"].to_numpy(), atol=1e-5)
    np.testing.assert_allclose(final_gaps(together), final_gaps(apart), atol=1e-4)


def test_finishes_have_noise_of_their_own(policy: Policy, miniature_model: Path) -> None:
    gaps = final_gaps(orders(policy))
    assert gaps.shape == (len(STEPS) * len(PROMPTS), FINISHES)
    assert np.abs(gaps[:, 0] - gaps[:, 1]).min() > 1e-4
    almost_deterministic = make_policy(run_settings(miniature_model, eta=1e-4))
    gaps = final_gaps(orders(almost_deterministic))
    assert np.abs(gaps[:, 0] - gaps[:, 1]).max() < 1e-2


def test_an_output_that_is_known_is_not_computed_again(policy: Policy) -> None:
    rows = []
    hook = policy.unet.register_forward_hook(lambda _module, arguments, _outputs: rows.append(len(arguments[0])))
    scorer = CountingScorer(ProjectionScorer())
    orders(policy, scorer=scorer)
    hook.remove()
    plain, ranked = STEPS[-1] + 1, 2 * len(STEPS)
    finished = sum(2 * FINISHES * (6 - step - 2) for step in STEPS)
    branches = 2  # of classifier-free guidance
    assert sum(rows) == branches * len(PROMPTS) * (plain + ranked + finished)
    assert scorer.latents == len(PROMPTS) * len(STEPS) * 2 * (1 + FINISHES)


def test_orders_differ_where_signs_do_and_ties_count_one_half() -> None:
    one, other = np.array([1.0, -2.0, 3.0, 0.0, 1.0]), np.array([2.0, 1.0, -1.0, 1.0, 0.0])
    assert disagreement(one, other).tolist() == [0.0, 1.0, 1.0, 0.5, 0.5]


@given(chances=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_no_order_differs_from_a_finish_less_often_than_the_bound(chances: list[float]) -> None:
    chance = np.array(chances)  # that the better candidate of a pair ends better
    best_order = np.minimum(chance, 1 - chance).mean()
    assert least_disagreement((2 * chance * (1 - chance)).mean()) <= best_order + 1e-9


def test_the_bound_is_tight_for_pairs_alike() -> None:
    assert least_disagreement(2 * 0.9 * 0.1) == pytest.approx(0.1)
    assert least_disagreement(0.0) == 0.0 and least_disagreement(0.5) == least_disagreement(0.6) == 0.5


def test_shares_are_counted_by_step_and_resampled_by_prompt() -> None:
    table = pa.table(
        {
            "prompt": ["a", "b", "a", "b"] * 2,
            "step": [0] * 4 + [16] * 4,
            "step_gap": [1.0, 1.0, 1.0, 1.0] * 2,
            "final_gaps": [[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], *[[2.0, 1.0]] * 4],
        }
    )
    first, last = order_rows(table, num_steps=20, seed=0)
    assert (first["remaining_steps"], last["remaining_steps"], first["pairs"]) == (20, 4, 4)
    assert first["disagree"] == {"mean": 3 / 8, "low": 0.0, "high": 3 / 4}, "both samples of a, or none of them"
    assert first["final_disagree"]["mean"] == 1 / 4
    assert last["disagree"] == last["final_disagree"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


# Guidance


def test_what_guidance_did_is_what_tailorpo_g_records(policy: Policy, miniature_model: Path) -> None:
    method = run_settings(miniature_model).method
    records = asyncio.run(collect(policy, ProjectionScorer(), BATCH, method, 7, 0.5, 0))
    table = asyncio.run(measure_guidance(policy, ProjectionScorer(), BATCH, 7, method=method, reward_scale=0.5))
    assert table.schema.names == ["prompt", "step", "guidance_accepted", "guidance_move"]
    assert table == records.select(table.schema.names)
    rows = guidance_rows(table, num_steps=6, seed=0)
    assert [row["remaining_steps"] for row in rows] == [6, 4, 2]
    moves = table.filter(pc.field("step") == 2)["guidance_move"].to_numpy()
    assert rows[1]["move"]["mean"] == pytest.approx(moves.mean()) and rows[1]["samples"] == 4
    assert rows[1]["raised"]["low"] <= rows[1]["raised"]["mean"] <= rows[1]["raised"]["high"]


# Runs


def demo_like(**sections: Any) -> RunSettings:
    """A run of the grid of the paper."""
    values = {"sampling": {"num_steps": 20}, "method": {"trained_steps": [18, 9], "guidance": {"eta_max": 0.3}}}
    return parse_settings(miniature_values(Path("some/model"), **(values | sections)))


def test_steps_are_spread_as_the_papers() -> None:
    assert evenly_spread(20, 5) == (20, 16, 12, 8, 4)
    assert evenly_spread(20, 10) == tuple(range(20, 0, -2))
    assert evenly_spread(20, 3) == (20, 14, 7)
    with pytest.raises(ValueError, match=r"sampling.num_steps=4 has no 5 steps to train; take a finer grid"):
        evenly_spread(4, 5)


def without(settings: RunSettings, *names: str) -> dict[str, Any]:
    """All settings but the run's name, its iterations, and these of its method."""
    values = settings.model_dump()
    values["method"] = {name: value for name, value in values["method"].items() if name not in names}
    return {name: value for name, value in values.items() if name not in ("name", "iterations")}


def test_one_thing_varies_in_a_comparison() -> None:
    base = demo_like()
    limited = base.model_copy(update={"budget_seconds": 60.0})
    steps, strengths = step_arms(limited, 3), strength_arms(limited, 3)
    assert {arm.settings.budget_seconds for arm in (*steps, *strengths)} == {None}
    assert [len(arm.settings.trained_steps) for arm in steps] == [3, 5, 10]
    assert {arm.settings.iterations for arm in (*steps, *strengths)} == {3}
    assert all(without(arm.settings, "trained_steps") == without(steps[0].settings, "trained_steps") for arm in steps)
    assert all(without(arm.settings, "guidance") == without(base, "guidance") for arm in strengths)
    assert all(arm.settings.method.guidance is None for arm in (*steps, strengths[0]))
    found = [arm.settings.method.guidance for arm in strengths[1:]]
    assert [(each.eta_min, each.eta_max, each.delta) for each in found] == [
        (0.1, 0.3, 0.5),
        (0.2, 0.6, 0.5),
        (0.4, 1.2, 0.5),
    ]
    names = [arm.settings.name for arm in (*steps, *strengths)]
    assert len(set(names)) == len(names)


def test_a_plan_refuses_what_cannot_succeed_before_anything_starts(miniature_model: Path) -> None:
    model = {"model": {"path": str(miniature_model)}, "evaluation": {"images": 4}}
    jpeg = demo_like(**model)
    ClaimsPlan(jpeg, 8, 2, ("order", "steps")).check()
    for table in ("guidance", "strength"):
        with pytest.raises(ValueError, match="guidance needs a differentiable reward"):
            ClaimsPlan(jpeg, 8, 2, (table,)).check()
    for samples in (0, -4, 6):
        with pytest.raises(
            ValueError, match=rf"--samples {samples} is no multiple of rollout.batch_size=4 above 1; 4 is"
        ):
            ClaimsPlan(jpeg, samples, 2, ("order",)).check()
    with pytest.raises(ValueError, match=r"--samples 1 is no multiple of rollout.batch_size=1 above 1; 2 is"):
        ClaimsPlan(demo_like(**model, rollout={"batch_size": 1}), 1, 2, ("order",)).check()
    unevaluated = demo_like(**model | {"evaluation": {"images": 0}})
    ClaimsPlan(unevaluated, 8, 2, ("order",)).check()
    for table in ("steps", "strength"):
        with pytest.raises(ValueError, match=r"evaluation.images=0 leaves nothing to compare runs by"):
            ClaimsPlan(unevaluated, 8, 2, ("order", table)).check()
    ddpo = demo_like(**model, method={"name": "ddpo"})
    for table in TABLES:
        with pytest.raises(ValueError, match=r"method.name='ddpo': the claims are about TailorPO"):
            ClaimsPlan(ddpo, 8, 2, (table,)).check()


def test_the_inputs_of_a_table_tell_what_it_follows_from(miniature_model: Path) -> None:
    settings = demo_like()
    plan, more = ClaimsPlan(settings, 8, 2, TABLES), ClaimsPlan(settings, 16, 3, TABLES)
    assert all(plan.inputs(name) == ClaimsPlan(settings, 8, 2, TABLES).inputs(name) for name in TABLES)
    assert all(plan.inputs(name) != more.inputs(name) for name in TABLES)
