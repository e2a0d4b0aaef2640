"""The folder of an evaluation: its settings, a folder per adapter, and what stands of an interrupted one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline.config_loading import parse_as
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.pictures import change_pictures
from pipeline.evaluation.prompt_table import pair_table, prompt_table
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.evaluation.tables import evaluation_text
from pipeline.images import save_png
from pipeline.parquet_file import write_parquet
from pipeline.report.evaluation_file import EVALUATION_FILE
from pipeline.report.evaluation_page import SETTINGS_FILE
from pipeline.report.pairs import PAIRS_FILE
from pipeline.run_folder import write_json, write_text

TEXT_FILE = "evaluation.md"

# What may differ between an evaluation and its continuation: where the work is done.
PLACEMENT = {"rollout", "reward_actors"}


def open_folder(settings: AdapterEvaluationSettings, directory: Path) -> None:
    """Note the settings in a new folder, or make sure that they are those of an existing one.

    Raises:
        ValueError: the folder holds an evaluation with other settings.
    """
    values = settings.model_dump(mode="json")
    path = directory / SETTINGS_FILE
    if path.is_file():
        found = _as_written_today(yaml.safe_load(path.read_text(encoding="utf-8")))
        differing = [key for key in values if key not in PLACEMENT | {"adapters"} and not _same(found, values, key)]
        if differing:
            raise ValueError(
                f"{directory} holds an evaluation with another {', '.join(differing)}; give another --output, or the "
                "settings of its evaluation.yaml"
            )
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _as_written_today(values: Any) -> Mapping[str, Any]:
    """Settings as this version writes them: one that did not exist when they were written has its default."""
    try:
        return parse_as(AdapterEvaluationSettings, values).model_dump(mode="json")
    except ValueError as error:
        raise ValueError(f"the folder's {SETTINGS_FILE} cannot be read: {error}; give another --output") from error


def _same(found: Mapping[str, Any], values: Mapping[str, Any], key: str) -> bool:
    """Whether a setting is as it was; a file of prompts may have moved, for what it holds is looked at elsewhere."""
    before, now = found.get(key), values[key]
    if key == "prompts" and isinstance(before, str) and isinstance(now, str):
        return Path(before).name == Path(now).name
    return bool(before == now)


def checksum_of_prompts(prompts: Sequence[str]) -> str:
    """SHA-256 of prompts in their order."""
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


def is_evaluated(directory: Path, label: str, subject: Mapping[str, str]) -> bool:
    """Whether an adapter has been evaluated here: these very weights (adapter_sha256), on these prompts."""
    file = directory / label / EVALUATION_FILE
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return file.is_file() and all(found.get(name) == checksum for name, checksum in subject.items())


def write_adapter(
    evaluation: Evaluation,
    reward_labels: tuple[str, ...],
    aspect_labels: tuple[str, ...],
    held_out: list[str],
    subject: Mapping[str, str],
    directory: Path,
) -> None:
    """Write everything about one adapter; evaluation.json comes last, and says that the rest is there.

    Args:
        subject: checksums of what was evaluated, as `is_evaluated` asks for them.
    """
    write_numbers(evaluation, reward_labels, aspect_labels, directory)
    for kind, picture in change_pictures(evaluation).items():
        save_png(picture, directory / f"{kind}.png")
    write_text(directory / TEXT_FILE, evaluation_text(evaluation) + "\n")
    write_json(directory / EVALUATION_FILE, evaluation.as_json() | {"held_out_rewards": held_out, **subject})


def write_numbers(
    evaluation: Evaluation, reward_labels: tuple[str, ...], aspect_labels: tuple[str, ...], directory: Path
) -> None:
    """pairs.parquet and per_prompt.parquet: the numbers behind an evaluation, by pair of images and by prompt."""
    pairs = pair_table(evaluation, reward_labels, aspect_labels)
    tables = {PAIRS_FILE: pairs, "per_prompt.parquet": prompt_table(evaluation, pairs)}
    for name, table in tables.items():
        write_parquet(pa.Table.from_pandas(table, preserve_index=False), directory / name)


def write_text_of_all(settings: AdapterEvaluationSettings, held_out: list[str], directory: Path) -> Path:
    """evaluation.md: what was compared, and the tables of every adapter."""
    drawn = f"{settings.prompts_title} prompts, {settings.images_per_prompt} images each, seed {settings.seed}"
    parts = [
        f"# {settings.model.path} against {len(settings.adapters)} adapters",
        f"{drawn}; {settings.sampling.num_steps} DDIM steps, eta {settings.sampling.eta}, guidance scale "
        f"{settings.sampling.guidance_scale}. Rewards that no adapter says it was trained on: {', '.join(held_out)}.",
    ]
    for adapter in settings.adapters:
        text = (directory / adapter.label / TEXT_FILE).read_text(encoding="utf-8").strip()
        parts += [f"## {adapter.label}", f"`{adapter.path}`", text]
    write_text(directory / TEXT_FILE, "\n\n".join(parts) + "\n")
    return directory / TEXT_FILE
