"""Rewards of one's own: `module:Class` in a configuration names a class that lies outside this project."""

from __future__ import annotations

from pipeline.own_classes import look_in_the_working_directory, own_class
from pipeline.rewards.base import Reward

DECLARED = {"name": str, "differentiable": bool, "needs_path": bool, "licence": str, "held_out_only": bool}
"""Class attributes that every reward declares, and their types."""


def own_reward_class(name: str) -> type[Reward]:
    """Import the class `module:Class`; the module lies in the working directory, or is installed.

    Raises:
        ValueError: the module cannot be imported, or the class is missing or no complete `Reward`.
    """
    look_in_the_working_directory()
    found = own_class(name, Reward, "reward", "my_rewards:Saturation")  # type: ignore[type-abstract]
    _check_declarations(found, name)
    return found


def _check_declarations(found: type[Reward], name: str) -> None:
    for attribute, kind in DECLARED.items():
        value = getattr(found, attribute, None)
        if not isinstance(value, kind):
            raise ValueError(
                f"reward {name!r} must declare the class attribute {attribute} of type {kind.__name__}; got {value!r}"
            )
    if not (isinstance(found.scale, int | float) and found.scale > 0):
        raise ValueError(f"reward {name!r} declares scale={found.scale!r}; it must be a positive number")
