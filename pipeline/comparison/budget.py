"""How many iterations a budget buys: the arithmetic that makes a comparison fair."""

import math

from pipeline.comparison.settings import BudgetSettings
from pipeline.config import RunSettings

MOST_ITERATIONS = 1_000_000
"""Of a run that ends when its seconds are spent."""

ROUNDING = 1e-9
"""By how much a quotient of floats may miss the whole number that it is."""


def within_budget(settings: RunSettings, budget: BudgetSettings, share: float = 1.0) -> RunSettings:
    """`settings` with the iterations, or the seconds, that a share of the budget buys.

    Raises:
        ValueError: it buys no iteration.
    """
    amount = budget.amount * share
    if budget.unit == "seconds":
        return settings.model_copy(update={"iterations": MOST_ITERATIONS, "budget_seconds": amount})
    cost = cost_of_iteration(settings, budget)
    iterations = math.floor(amount / cost + ROUNDING)
    if iterations < 1:
        raise ValueError(
            f"{amount:g} {in_words(budget)} buy no iteration of {settings.name!r}, which costs {cost:g}; raise "
            "budget.amount (or sweep.budget_share, where this is a run of the sweep), or lower rollout.trajectories"
        )
    return settings.model_copy(update={"iterations": iterations, "budget_seconds": None})


def cost_of_iteration(settings: RunSettings, budget: BudgetSettings) -> float:
    """What an iteration costs in the unit of the budget, which is not seconds: those are known when they are spent."""
    assert budget.unit != "seconds", "nobody knows before"
    calls = settings.network_calls_per_trajectory if budget.unit == "network_calls" else 1.0
    return settings.rollout.trajectories * calls


def in_words(budget: BudgetSettings) -> str:
    """The unit as it is written."""
    return budget.unit.replace("_", " ")
