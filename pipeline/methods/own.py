"""Methods of one's own: `module:Class` in a configuration names a class that lies outside this project."""

from collections.abc import Mapping
from inspect import isabstract, isclass
from typing import Any

from pydantic import ValidationError

from pipeline.config_loading import explain
from pipeline.method_settings import MethodSettings
from pipeline.methods.base import Method
from pipeline.own_classes import own_class


def own_method_class(name: str) -> type[Method]:
    """Import the class `module:Class`, a method with its settings.

    Raises:
        ValueError: the module cannot be imported, or the class is missing or no complete `Method`.
    """
    found = own_class(name, Method, "method", "my_methods:StepwiseIPO")  # type: ignore[type-abstract]
    settings_class = getattr(found, "settings_class", None)
    if not (isclass(settings_class) and issubclass(settings_class, MethodSettings)):
        raise ValueError(
            f"method {name!r} must declare settings_class, a subclass of pipeline.method_settings.MethodSettings; "
            f"got {settings_class!r}"
        )
    if isabstract(settings_class):
        missing = ", ".join(sorted(settings_class.__abstractmethods__))
        raise ValueError(f"the settings of method {name!r} do not define {missing}; MethodSettings says what they do")
    for declared, kind in ((found, "diagnostic_names"), (settings_class, "paper")):
        if not hasattr(declared, kind):
            raise ValueError(f"{declared.__name__} of method {name!r} must declare the class attribute {kind}")
    return found


def own_settings(section: Mapping[str, Any]) -> MethodSettings:
    """Check the section of a configuration that names a method of one's own by that method's settings.

    Raises:
        ValueError: as `own_method_class`, or settings that do not hold; every fault is listed, a line each.
    """
    settings_class = own_method_class(section["name"]).settings_class
    try:
        return settings_class.model_validate(section)
    except ValidationError as error:
        faults = [explain(fault, settings_class, within="method") for fault in error.errors()]
        raise ValueError("\n".join(faults)) from None
