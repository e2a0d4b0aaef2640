"""docs/configuration.md, from the sentences that stand under the settings themselves: `make docs` writes it."""

from inspect import cleandoc, isabstract
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.comparison.settings import (
    BudgetSettings,
    ComparisonSettings,
    FinalEvaluationSettings,
    RewardChoice,
    SweepSettings,
    VariantSettings,
)
from pipeline.config import RunSettings
from pipeline.config_loading import sections_of
from pipeline.evaluation.settings import AdapterEvaluationSettings, AdapterSettings
from pipeline.settings import Settings

INTRODUCTION = """# Configuration

A run is described by a YAML file; the project's own are in `configs/`. Every setting can be replaced on the command
line, `python jobs/align.py --config configs/demo.yaml rollout.batch_size=8 method.guidance=null`, and `--dry-run`
prints what results, with the arithmetic of the run. Unknown keys are refused.

A file may build on another: `extends: base/sd15.yaml`, relative to the file that says so. Its sections are merged key
by key over those of the base. A list replaces the base's, and so does a section of another kind (the `name` of a method
or a reward). The run folder keeps what results, without a trace of the base.

`method.name` and `reward.name` may also be `module:Class`, a [method](own_methods.md) or a [reward](own_rewards.md) of
your own; such a method's section takes the settings that it declares.

This page is made by `make docs` from `pipeline/config.py`, `pipeline/comparison/settings.py` and
`pipeline/evaluation/settings.py`.
"""


COMPARISON_INTRODUCTION = """
# Configuration of a comparison

[compare.md](compare.md) describes the file that `jobs/compare.py` takes. `variants` and `rewards` are lists of the
sections of that name.
"""

COMPARISON_SECTIONS: dict[str, type[BaseModel]] = {
    "The comparison": ComparisonSettings,
    "`variants`": VariantSettings,
    "`rewards`": RewardChoice,
    "`budget`": BudgetSettings,
    "`sweep`": SweepSettings,
    "`evaluation` of a comparison": FinalEvaluationSettings,
}


EVALUATION_INTRODUCTION = """
# Settings of an evaluation

[evaluation.md](evaluation.md) describes the command; `--set` takes any of these. The sections `model`, `sampling`,
`embedder` (a reward) and the pools `rollout` and `reward_actors` are those of a run.
"""

EVALUATION_SECTIONS: dict[str, type[BaseModel]] = {
    "The evaluation": AdapterEvaluationSettings,
    "`adapters`": AdapterSettings,
}


def configuration_page() -> str:
    """The page, in Markdown: a table per section."""
    run = "".join(_section(model, title) for title, model in _sections(RunSettings, ""))
    comparison, evaluation = (
        "".join(_section(model, title) for title, model in sections.items())
        for sections in (COMPARISON_SECTIONS, EVALUATION_SECTIONS)
    )
    return INTRODUCTION + run + COMPARISON_INTRODUCTION + comparison + EVALUATION_INTRODUCTION + evaluation


def _sections(model: type[BaseModel], path: str) -> list[tuple[str, type[BaseModel]]]:
    """This section and those nested in it, with their titles, depth first."""
    found = [(f"`{path}`" if path else "The run", model)]
    for key, field in model.model_fields.items():
        nested = sections_of(field.annotation)
        if _is_list(field) and len(nested) == 1:
            continue
        # An abstract one stands for those that lie outside the project.
        for kind in (kind for kind in nested if not isabstract(kind)):
            (_, own), *below = _sections(kind, f"{path}.{key}".lstrip("."))
            name = f" with `name: {kind.model_fields['name'].default}`" if len(nested) > 1 else ""
            found += [(f"`{path}.{key}`".replace("`.", "`") + name, own), *below]
    return found


def _section(model: type[BaseModel], title: str) -> str:
    lines = [
        f"\n## {title}\n",
        f"{cleandoc(model.__doc__ or '')}\n",
        "| setting | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{key}` | {_type_name(field)} | {_default(field)} | {_meaning(field)} |"
        for key, field in model.model_fields.items()
        if not sections_of(field.annotation) or _is_list(field) or isinstance(field.default, str | None)
    ]
    return "\n".join(lines) + "\n"


def _is_list(field: FieldInfo) -> bool:
    return Ellipsis in get_args(field.annotation)


def _type_name(field: FieldInfo) -> str:
    return f"`{_annotation_name(field.annotation)}`".replace("|", "\\|")


def _annotation_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Annotated:
        return _annotation_name(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(dict.fromkeys(_annotation_name(item) for item in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        items = list(dict.fromkeys(_annotation_name(item) for item in get_args(annotation) if item is not Ellipsis))
        return f"list of {', '.join(items)}"
    if get_origin(annotation) is dict:
        return f"section of {_annotation_name(get_args(annotation)[1])}"
    name: str = annotation.__name__
    return "section" if issubclass(annotation, Settings) else name


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "null"
    return f"`{_in_words(default)}`"


def _in_words(value: Any) -> str:
    if isinstance(value, tuple) and any(isinstance(item, Settings) for item in value):
        return f"[{', '.join(item.name for item in value)}]"
    return str(list(value) if isinstance(value, tuple) else value)


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())
