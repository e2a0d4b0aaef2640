"""From the command line of an evaluation to its checked settings; what adapters say of themselves fills the gaps."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config_loading import apply_override, parse_as
from pipeline.data_files import FORMATS
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.training_record import TrainingRecord, read_training_record


def settings_from(
    adapters: Sequence[str],
    prompts: str,
    prompt_column: str | None,
    rewards: Sequence[str],
    model: str | None,
    images_per_prompt: int,
    overrides: Sequence[str],
) -> AdapterEvaluationSettings:
    """Settings of the evaluation.

    Model and sampling that are not given are those that the adapters were trained with.

    Args:
        adapters: PATH or NAME=PATH each.
        prompts: where they come from; a data set where `prompt_column` names a column of it.
        rewards: NAME or NAME=PATH each.
        overrides: section.key=value each.

    Raises:
        ValueError: a key or a value that does not hold, or adapters that were trained with different settings.
    """
    if prompt_column is None and Path(prompts).suffix.lower() in FORMATS:
        raise ValueError(f"--prompts {prompts} is a table; name the column that holds the prompts by --prompt-column")
    values: dict[str, Any] = {
        "adapters": [_adapter(text) for text in adapters],
        "prompts": prompts if prompt_column is None else {"path": prompts, "column": prompt_column},
        "rewards": [_reward(text) for text in rewards],
        "images_per_prompt": images_per_prompt,
    }
    if model is not None:
        values["model"] = {"path": model}
    for override in overrides:
        apply_override(values, override)
    records = _records([adapter["path"] for adapter in values["adapters"]])
    if "path" not in values.get("model", {}):
        values["model"] = _common_model(records) | values.get("model", {})
    if records:
        values["sampling"] = _common_sampling(records, values.get("sampling", {}))
    return parse_as(AdapterEvaluationSettings, values)


def _adapter(text: str) -> dict[str, str]:
    """NAME=PATH, or a path, in which an equals sign may stand after a slash."""
    match = re.match(r"([^/=]+)=(.+)", text)
    return {"name": match[1], "path": match[2]} if match else {"path": text}


def _reward(text: str) -> dict[str, str]:
    name, separator, path = text.partition("=")
    return {"name": name, "path": path} if separator else {"name": name}


def _records(adapters: Sequence[str]) -> list[TrainingRecord]:
    return [record for path in adapters if (record := read_training_record(path)) is not None]


def _common_model(records: Sequence[TrainingRecord]) -> dict[str, str | None]:
    models = {(record.base_model, record.base_revision) for record in records}
    if not models:
        raise ValueError("no adapter says which model it belongs to; give the base model by --model")
    if len(models) > 1:
        named = ", ".join(sorted(path if revision is None else f"{path} at {revision}" for path, revision in models))
        raise ValueError(f"the adapters were trained on different models ({named}); choose one by --model")
    ((path, revision),) = models
    return {"path": path, "revision": revision}


def _common_sampling(records: Sequence[TrainingRecord], given: dict[str, Any]) -> dict[str, Any]:
    """The sampling that all adapters were trained with, under what is given."""
    trained = [record.sampling.model_dump() for record in records]
    differing = [key for key in trained[0] if key not in given and len({str(each[key]) for each in trained}) > 1]
    if differing:
        raise ValueError(
            f"the adapters were trained with different sampling ({', '.join(differing)}), and pairs need the same for "
            f"all; choose it, as in sampling.{differing[0]}={trained[0][differing[0]]}"
        )
    return trained[0] | given
