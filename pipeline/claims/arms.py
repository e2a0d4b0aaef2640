"""The alignment runs that are compared: one configuration, of which one thing varies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import RunSettings
from pipeline.config_loading import parse_settings
from pipeline.method_settings import TAILORPO, GuidanceSettings, TailorPOSettings

STEP_COUNTS = (3, 5, 10)
"""Table 5 of the paper."""

STRENGTH_FACTORS = (0.0, 1.0, 2.0, 4.0)
"""Times the configuration's guidance strengths, for Table 6; 0 is TailorPO without guidance."""


@dataclass(frozen=True)
class Arm:
    """A run of a comparison, and what the tables call it."""

    label: str
    settings: RunSettings


def tailorpo_settings(settings: RunSettings) -> TailorPOSettings:
    """The method's section of a run whose method the claims are about.

    Raises:
        ValueError: it is another method.
    """
    if settings.method.name != TAILORPO or not isinstance(settings.method, TailorPOSettings):
        raise ValueError(
            f"method.name={settings.method.name!r}: the claims are about TailorPO; give a configuration of tailorpo"
        )
    return settings.method


def evenly_spread(num_steps: int, count: int) -> tuple[int, ...]:
    """`count` trained steps of a grid, counted as steps that remain: 20, 16, 12, 8, 4 for 5 of 20.

    Raises:
        ValueError: the grid has too few steps before its last one.
    """
    if count >= num_steps:
        raise ValueError(f"sampling.num_steps={num_steps} has no {count} steps to train; take a finer grid")
    return tuple(num_steps - index * num_steps // count for index in range(count))


def step_arms(settings: RunSettings, iterations: int, counts: Sequence[int] = STEP_COUNTS) -> list[Arm]:
    """TailorPO without guidance, trained on more or fewer steps, at equal trajectories.

    Raises:
        ValueError: the settings do not hold with so many steps.
    """
    grid = settings.sampling.num_steps
    return [
        _arm(
            settings,
            iterations,
            label=f"{count} steps",
            name=f"steps-{count}",
            method={"trained_steps": evenly_spread(grid, count), "guidance": None},
        )
        for count in counts
    ]


def strength_arms(settings: RunSettings, iterations: int, factors: Sequence[float] = STRENGTH_FACTORS) -> list[Arm]:
    """TailorPO-G with weaker and stronger guidance than the configuration's, at equal trajectories.

    Raises:
        ValueError: the settings do not hold.
    """
    guidance = tailorpo_settings(settings).guidance or GuidanceSettings()
    arms = []
    for factor in factors:
        low, high = factor * guidance.eta_min, factor * guidance.eta_max
        scaled = guidance.model_dump() | {"eta_min": low, "eta_max": high} if factor else None
        label = f"{low:g} to {high:g}" if factor else "none"
        arms.append(_arm(settings, iterations, label, f"strength-{factor:g}", {"guidance": scaled}))
    return arms


def _arm(settings: RunSettings, iterations: int, label: str, name: str, method: dict[str, Any]) -> Arm:
    values = settings.model_dump(mode="json")
    # A budget of time would end arms whose iterations are dearer after fewer trajectories.
    values |= {"name": f"{settings.name}-claims-{name}", "iterations": iterations, "budget_seconds": None}
    values["method"] = tailorpo_settings(settings).model_dump(mode="json") | method
    return Arm(label, parse_settings(values))
