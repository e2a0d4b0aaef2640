"""Alignment methods by name, one file each. Modules are imported on first use: a run loads its own method alone."""

from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.config import RunSettings
from pipeline.own_classes import is_own

if TYPE_CHECKING:
    from pipeline.methods.base import Method

METHODS: dict[str, tuple[str, str]] = {
    "tailorpo": ("pipeline.methods.tailorpo", "TailorPO"),
    "d3po": ("pipeline.methods.d3po", "D3PO"),
    "ddpo": ("pipeline.methods.ddpo", "DDPO"),
    "spo": ("pipeline.methods.spo", "SPO"),
    "diffusion_dpo": ("pipeline.methods.diffusion_dpo", "DiffusionDPO"),
}
"""Name of each method -> (module, class)."""


def method_class(name: str) -> type["Method"]:
    """The class of the method `name`, which the configuration has checked."""
    if is_own(name):
        from pipeline.methods.own import own_method_class

        return own_method_class(name)
    module, class_name = METHODS[name]
    found: type[Method] = getattr(import_module(module), class_name)
    return found


def create_method(settings: RunSettings) -> "Method":
    """The method of a run."""
    return method_class(settings.method.name)(settings)
