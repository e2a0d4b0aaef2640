"""From a YAML file and dotted overrides to checked settings, with errors that say what to change."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import REWARD_TAGS, RunSettings
from pipeline.config_files import read_config
from pipeline.method_settings import OWN_METHOD
from pipeline.prompt_settings import PROMPT_TAGS
from pipeline.secrets import refuse_secrets
from pipeline.settings import Settings

Model = TypeVar("Model", bound=BaseModel)


def load_settings(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a YAML file and what it extends, apply overrides such as "rollout.batch_size=8", and check the result.

    Raises:
        ValueError: a missing or malformed file, an unknown key (with the nearest known one), a value out of range, or
            one that holds a secret.
    """
    return parse_settings(read_values(path, overrides))


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tree of plain values in a YAML file and what it extends, with overrides applied; nothing is checked yet.

    Raises:
        ValueError: a missing or malformed file, or a malformed override.
    """
    values = read_config(path)
    for override in overrides:
        apply_override(values, override)
    return values


def parse_settings(values: dict[str, Any]) -> RunSettings:
    """Check a tree of plain values as those of a run.

    Raises:
        ValueError: as `load_settings`; every fault is listed, a line each.
    """
    return parse_as(RunSettings, values)


def parse_as(model: type[Model], values: dict[str, Any]) -> Model:
    """`parse_settings` of another kind of job.

    Raises:
        ValueError: as `parse_settings`.
    """
    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        faults = [explain(fault, model) for fault in error.errors()]
        raise ValueError("\n".join(faults)) from None
    refuse_secrets(settings)
    return settings


def dump_settings(settings: Settings) -> str:
    """The resolved configuration as YAML; `load_settings` reads it back unchanged."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Put the value of "section.key=value" into a tree of plain values.

    Raises:
        ValueError: it has another form, or its key leads through a value.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r} is not of the form section.key=value")
    *sections, last = key.split(".")
    section: Any = values
    for name in sections:
        place = _place(section, name, override)
        if isinstance(section, dict) and section.get(name) is None:
            section[name] = {}
        section = section[place]
        if not isinstance(section, dict | list):
            raise ValueError(f"override {override!r}: {name} is a value, not a section")
    try:
        section[_place(section, last, override)] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r} has a value that is no valid YAML: {error}") from error


def _place(section: dict[str, Any] | list[Any], name: str, override: str) -> str | int:
    """Where `name` lies in a section, or in a list of them: there it is a number from 0."""
    if isinstance(section, dict):
        return name
    if not (name.isdecimal() and int(name) < len(section)):
        raise ValueError(f"override {override!r}: {name} is no place in a list of {len(section)}; they count from 0")
    return int(name)


def explain(fault: Any, root: type[BaseModel], within: str = "") -> str:
    """What to change in a configuration, for one of pydantic's errors.

    Args:
        fault: an entry of `ValidationError.errors()`.
        root: what was validated.
        within: the dotted key of the section that `root` is, where it is not the whole configuration.
    """
    key, section = _locate(fault["loc"], root)
    key = ".".join(filter(None, (within, key)))
    if fault["type"] == "extra_forbidden":
        known = list(section.model_fields)
        nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.0)
        return f"unknown setting {key}; did you mean {nearest[0]}? Known here: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"setting {key} is missing; give it in the file or as {key}=..."
    if fault["type"] == "union_tag_invalid":
        return f"{key}.name={fault['ctx']['tag']!r} is unknown; known are {fault['ctx']['expected_tags']}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{key}={fault['input']!r}: {message}" if key and not isinstance(fault["input"], dict) else message


def _locate(location: Sequence[int | str], root: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """The dotted key of a fault, and the section its last part was looked for in."""
    section = root
    choices: list[type[BaseModel]] = []
    key = []
    for name in (part for part in location if part not in (*REWARD_TAGS, *PROMPT_TAGS, OWN_METHOD)):
        if choices and name in (tags := {choice.model_fields["name"].default: choice for choice in choices}):
            # Where a section is one of several kinds, pydantic puts the kind's name into the location.
            section, choices = tags[name], []
            continue
        key.append(str(name))
        if isinstance(name, int) or name not in section.model_fields:
            continue
        sections = sections_of(section.model_fields[name].annotation)
        if len(sections) == 1:
            section = sections[0]
        choices = sections if len(sections) > 1 else []
    return ".".join(key), section


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a setting's type allows: none for a plain value, several for a section of several kinds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = (section for argument in get_args(annotation) for section in sections_of(argument))
    return list(dict.fromkeys(found))
