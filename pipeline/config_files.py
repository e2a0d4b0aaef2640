"""YAML files of settings, and the file that one may extend."""

from pathlib import Path
from typing import Any

import yaml

BASE_KEY = "extends"


def read_config(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file, merged over those of the file that its `extends` names, relative to itself.

    A section is merged key by key; one that names another kind (its `name` differs, as of a method or a reward) and
    everything that is no section, lists included, replaces what the base has. `extends` itself is left out.

    Raises:
        ValueError: a file is missing or malformed, or files extend each other in a circle.
    """
    return _read(path, ())


def _read(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """`read_config`, reached by way of the files `extending`, the first of which the user named."""
    by = f", which {extending[-1]} extends" if extending else ""
    if not path.is_file():
        raise ValueError(f"there is no configuration file {path}{by}; the project's own are in configs/")
    if any(path.samefile(earlier) for earlier in extending):
        circle = " extends ".join(map(str, (*extending, path)))
        raise ValueError(f"{circle}, in a circle; remove one {BASE_KEY}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings; begin from one of the files in configs/")
    if BASE_KEY not in values:
        return values
    base = values.pop(BASE_KEY)
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path} has {BASE_KEY}={base!r}; give one file, relative to this one")
    return _merged(_read(path.parent / base, (*extending, path)), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        below: Any = base.get(key)
        sections = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merged(below, value) if sections and _of_one_kind(below, value) else value
    return merged


def _of_one_kind(base: dict[str, Any], values: dict[str, Any]) -> bool:
    return "name" not in values or values["name"] == base.get("name")
