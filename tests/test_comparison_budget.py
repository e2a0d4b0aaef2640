"""An equal budget: closed forms for trajectories and network calls, a stop for seconds."""

from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings import miniature_settings

from pipeline.comparison.budget import MOST_ITERATIONS, cost_of_iteration, within_budget
from pipeline.comparison.settings import BudgetSettings

MODEL = Path("some/model")

# Four steps, two of them trained, eight trajectories an iteration. TailorPO: 4 + 2 calls, 2 of the reference, 2 of the
# learner; guidance adds 2 with a gradient and 2 that accept. DDPO: 4 and 4. D3PO: a pair shares one of 2 x 4 calls, in
# policy and reference. SPO, one plain step and pools of 4: 1 + 1 + 4 x 2, 3 and 3.
CALLS_PER_TRAJECTORY = [
    ({}, 10.0),
    ({"guidance": {}}, 14.0),
    ({"name": "ddpo"}, 8.0),
    ({"name": "d3po"}, 3.5 + 3.5 + 4),
    ({"name": "spo", "plain_steps": 1}, 10 + 3 + 3),
]


@pytest.mark.parametrize(("method", "calls"), CALLS_PER_TRAJECTORY, ids=lambda value: str(value))
def test_network_calls_buy_what_each_method_costs(method: dict[str, Any], calls: float) -> None:
    settings = miniature_settings(MODEL, method=method)
    assert within_budget(settings, BudgetSettings(unit="network_calls", amount=8 * calls * 5)).iterations == 5
    assert within_budget(settings, BudgetSettings(unit="network_calls", amount=8 * calls * 6 - 1)).iterations == 5


def test_every_pass_of_the_learner_is_paid_for() -> None:
    twice = miniature_settings(MODEL, learner={"inner_epochs": 2})
    budget = BudgetSettings(unit="network_calls", amount=8 * 12 * 3)
    assert within_budget(twice, budget).iterations == 3


@pytest.mark.parametrize("method", [method for method, _ in CALLS_PER_TRAJECTORY], ids=str)
def test_trajectories_buy_the_same_of_every_method(method: dict[str, Any]) -> None:
    settings = miniature_settings(MODEL, method=method, budget_seconds=5.0)
    bought = within_budget(settings, BudgetSettings(unit="trajectories", amount=31))
    assert bought.iterations == 3
    assert bought.budget_seconds is None, "the base run's own limit would make the budgets unequal"


def test_seconds_end_a_run_and_iterations_do_not() -> None:
    bought = within_budget(miniature_settings(MODEL), BudgetSettings(unit="seconds", amount=60), share=0.25)
    assert (bought.iterations, bought.budget_seconds) == (MOST_ITERATIONS, 15.0)


@hypothesis.settings(deadline=None)
@given(iterations=st.integers(1, 10_000), share=st.sampled_from([1.0, 0.5, 0.3, 0.1, 1 / 3]))
def test_a_share_of_a_multiple_of_the_cost_is_not_lost_to_rounding(iterations: int, share: float) -> None:
    settings = miniature_settings(MODEL)
    for unit in ("trajectories", "network_calls"):
        cost = cost_of_iteration(settings, BudgetSettings(unit=unit, amount=1))
        budget = BudgetSettings(unit=unit, amount=iterations * cost / share)
        assert within_budget(settings, budget, share).iterations == iterations


def test_a_budget_that_buys_nothing_says_what_an_iteration_costs() -> None:
    with pytest.raises(ValueError, match=r"79 network calls buy no iteration of 'miniature', which costs 80; raise"):
        within_budget(miniature_settings(MODEL), BudgetSettings(unit="network_calls", amount=79))
