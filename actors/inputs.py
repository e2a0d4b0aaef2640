"""What a run is fed with, read before its actors start: prompts, and the pairs of images of an off-line method."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.dataset import BatchSource, PromptBatches
from actors.preference_data import PairBatches, read_preferences
from actors.prompts import prompts_of_run, read_prompt_sets, warn_of_prompts_on_both_sides
from pipeline.config import RunSettings
from pipeline.method_settings import PairMethodSettings
from pipeline.prompt_sets import PromptSets, save_prompt_sets
from pipeline.run_folder import PREFERENCES_FILE, write_json


@dataclass(frozen=True)
class RunInputs:
    """The prompts of a run, what its batches are made of, and what is to be said of the data set they come from."""

    prompts: PromptSets
    batches: BatchSource
    statement: dict[str, Any] | None = None


def inputs_of_run(settings: RunSettings, run_directory: Path) -> RunInputs:
    """`read_inputs`, with the prompts of the run folder and the same pairs, where a run is resumed.

    Raises:
        ValueError: as `read_inputs`, or the prompts or pairs are not those that the run began with.
    """
    inputs = _with_prompts(settings, prompts_of_run(settings.prompts, run_directory))
    if inputs.statement is not None:
        check_same_pairs(inputs.statement, run_directory)
    return inputs


def check_same_pairs(statement: dict[str, Any], run_directory: Path) -> None:
    """Refuse pairs that are not those which a run folder states, where it states any.

    Raises:
        ValueError: their hashes differ.
    """
    file = run_directory / PREFERENCES_FILE
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["sha256"] != statement["sha256"]:
        raise ValueError(
            f"the pairs of {statement['source']!r} are not those that the run began with ({file}); restore them, or "
            "start a new run with --config"
        )


def read_inputs(settings: RunSettings) -> RunInputs:
    """Read what the settings name; data sets by Ray Data, on the connected cluster.

    Raises:
        ValueError: what cannot be read, and the fix.
    """
    return _with_prompts(settings, read_prompt_sets(settings.prompts))


def save_inputs(inputs: RunInputs, settings: RunSettings, run_directory: Path) -> None:
    """State them in the run folder."""
    save_prompt_sets(inputs.prompts, settings.prompts, run_directory)
    if inputs.statement is not None:
        write_json(run_directory / PREFERENCES_FILE, inputs.statement)


def _with_prompts(settings: RunSettings, prompts: PromptSets) -> RunInputs:
    if not isinstance(settings.method, PairMethodSettings):
        warn_of_prompts_on_both_sides(prompts, settings.prompts)
        return RunInputs(prompts, PromptBatches(settings, prompts.train))
    pairs = read_preferences(settings.method)
    return RunInputs(prompts, PairBatches(settings, pairs), pairs.statement)
