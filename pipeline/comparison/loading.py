"""A comparison's files: the YAML it is described by, and the copies in its folder that it is resumed from."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline.comparison.plan import Plan, PlannedRun
from pipeline.comparison.settings import ComparisonSettings
from pipeline.config import RunSettings
from pipeline.config_loading import dump_settings, load_settings, parse_as, read_values
from pipeline.run_folder import CONFIG_FILE, SUMMARY_FILE, write_text

COMPARISON_FILE, BASE_FILE = "comparison.yaml", "base.yaml"
DIVERGED_FILE = "diverged.txt"


def load_comparison(path: Path, overrides: Sequence[str] = ()) -> ComparisonSettings:
    """Read a comparison from YAML, with overrides such as "budget.amount=1000".

    Raises:
        ValueError: a missing or malformed file, an unknown key (with the nearest known one), or a value out of range.
    """
    return parse_as(ComparisonSettings, read_values(path, overrides))


def load_begun(folder: Path) -> ComparisonSettings:
    """The comparison that a folder was made for, wherever the folder lies by now.

    Raises:
        ValueError: it is no folder of a comparison.
    """
    file = folder / COMPARISON_FILE
    if not file.is_file():
        raise ValueError(f"{folder} is no folder of a comparison: it has no {COMPARISON_FILE}")
    return load_comparison(file).model_copy(update={"base": str(folder / BASE_FILE)})


def open_folder(plan: Plan) -> None:
    """Make the comparison's folder, with copies of all that it was described by."""
    base = plan.folder / BASE_FILE
    values = read_values(Path(plan.comparison.base))
    write_text(base, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    copy = plan.comparison.model_copy(update={"base": str(base)})
    # Last, because a folder that has it can be resumed.
    write_text(plan.folder / COMPARISON_FILE, dump_settings(copy))


def is_finished(run: PlannedRun) -> bool:
    """Whether the run has ended; its summary is what it writes last."""
    return (run.folder / SUMMARY_FILE).is_file()


def note_divergence(folder: Path, reason: str) -> None:
    """Note in a run's folder that its numbers were no longer finite: it is not tried again."""
    write_text(folder / DIVERGED_FILE, f"{reason}\n")


def divergence(run: PlannedRun) -> str | None:
    """Why the run cannot come to its end: what `note_divergence` noted; None where it did not."""
    file = run.folder / DIVERGED_FILE
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def is_over(run: PlannedRun) -> bool:
    """Whether there is nothing left to do: it is finished, or has diverged."""
    return is_finished(run) or divergence(run) is not None


def begun_together(plan: Plan, parallel: int) -> list[list[PlannedRun]]:
    """The runs with which each phase begins, `parallel` of them at once, as far as they are not over.

    Which learning rates a sweep will choose makes no difference to the room that they need.
    """
    runs = plan.runs({cell.label: cell.settings.learning_rate for cell in plan.cells})
    phases = ([run for run in phase if not is_over(run)][:parallel] for phase in (plan.sweep_runs, runs))
    return [phase for phase in phases if phase]


def check_folders(runs: Sequence[PlannedRun]) -> None:
    """Refuse to go on with runs that were begun with other settings.

    Raises:
        ValueError: which folder.
    """
    for run in runs:
        config = run.folder / CONFIG_FILE
        if config.is_file() and _within_folder(load_settings(config)) != _within_folder(run.settings):
            raise ValueError(
                f"{run.folder} was begun with other settings than the comparison asks for now; remove that folder, or "
                "take back the change"
            )


def _within_folder(settings: RunSettings) -> str:
    """Settings of a run without the place of the comparison's folder, which may be named otherwise, or have moved."""
    folder = str(Path(settings.output_dir).parent)
    return settings.model_dump_json().replace(f'"{folder}/', '"')
