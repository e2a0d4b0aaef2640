"""Classes that lie outside this project, which a configuration names as `module:Class`.

Nothing is searched for: a module is imported because a configuration names it, and it runs with the job's rights.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from inspect import isabstract, isclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

Base = TypeVar("Base")

NAME = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<cls>[^\W\d]\w*)")


def is_own(name: str) -> bool:
    """Whether `name` is meant as module:Class rather than as a name that the project gives."""
    return ":" in name


def look_in_the_working_directory() -> None:
    """From now on `own_class` finds modules in the folder the job was started in, after those that are installed."""
    directory = str(Path.cwd())
    if directory not in sys.path:
        # Last, so that no file of the working directory takes the place of an installed module.
        sys.path.append(directory)
        invalidate_caches()


def own_class(name: str, base: type[Base], what: str, example: str) -> type[Base]:
    """Import the class `module:Class`.

    Args:
        name: module:Class.
        base: what it must be derived from.
        what: what messages call such a class.
        example: a name that has the right form.

    Raises:
        ValueError: the module cannot be imported, or the class is missing, no `base`, or not complete.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{what} {name!r} is not of the form module:Class, such as {example}")
    module = _import(match["module"], f"{what} {name!r}")
    found = getattr(module, match["cls"], None)
    at_home = f"{base.__module__}.{base.__name__}"
    if found is None:
        known = [
            key
            for key, value in vars(module).items()
            if isclass(value) and issubclass(value, base) and value is not base
        ]
        raise ValueError(
            f"{what} {name!r}: {module.__file__} has no class {match['cls']}; its {what}s: {', '.join(known) or 'none'}"
        )
    if not (isclass(found) and issubclass(found, base)):
        raise ValueError(f"{what} {name!r} is no subclass of {at_home}; derive it from that")
    if isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))  # type: ignore[attr-defined]
        raise ValueError(f"{what} {name!r} does not define {missing}; {at_home} says what they do")
    return found


def own_module_path(name: str) -> Path:
    """The file of the imported module of `module:Class`, or the folder of its top-level package."""
    top = sys.modules[re.split("[.:]", name)[0]]
    return Path(top.__path__[0] if hasattr(top, "__path__") else str(top.__file__))


def _import(module: str, meant: str) -> ModuleType:
    top = module.partition(".")[0]
    _refuse_mere_folder(top, meant)
    try:
        return import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (module, top):
            folder, file = str(Path.cwd()), f"{module.replace('.', '/')}.py"
            place = (
                f"put {file} into the folder the job is started in ({folder}), or install it"
                if folder in sys.path
                else f"only jobs that make runs look for {file} in the folder they are started in; where you trust it, "
                f"name its folder in PYTHONPATH, or install it"
            )
            raise ValueError(f"{meant}: there is no module {module}; {place}") from error
        raise ValueError(f"{meant}: importing {module} failed with {type(error).__name__}: {error}") from error


def _refuse_mere_folder(top: str, meant: str) -> None:
    """A folder of data, such as that of somebody else's runs, must not be a package merely because Python allows it."""
    spec = None if top in sys.modules else find_spec(top)
    if spec is not None and spec.origin is None:
        raise ValueError(
            f"{meant}: {top} is a folder without __init__.py; where it is a package of yours, add that file"
        )
