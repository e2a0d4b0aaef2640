"""From a comparison file to its runs: every variant with every reward and seed, after a sweep of learning rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.comparison.budget import within_budget
from pipeline.comparison.settings import ComparisonSettings, RewardChoice, SweepSettings, VariantSettings, slug
from pipeline.config import RunSettings
from pipeline.config_loading import apply_override, parse_settings, read_values
from pipeline.prompt_sets import TRAIN_FILE
from pipeline.prompt_settings import PromptSettings

SWEEP_FOLDER, RUNS_FOLDER, SWEEP_PROMPTS = "sweep", "runs", "prompts.txt"


@dataclass(frozen=True)
class PlannedRun:
    """A run, the folder that it makes, and the label of its cell."""

    cell: str
    settings: RunSettings
    folder: Path


@dataclass(frozen=True)
class Cell:
    """A variant with a reward.

    Attributes:
        label: what the report calls it; unique.
        settings: of its runs, within the budget; the seed and a swept learning rate are still to be set, and what its
            runs' names end with.
        sweep: the runs that choose its learning rate, by that; empty where there is nothing to choose.
    """

    label: str
    settings: RunSettings
    sweep: Mapping[float, PlannedRun]


@dataclass(frozen=True)
class Plan:
    """All of a comparison.

    Attributes:
        folder: the comparison's folder.
        left_out: labels of a variant and a reward that do not go together.
    """

    comparison: ComparisonSettings
    folder: Path
    cells: tuple[Cell, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def sweep_runs(self) -> list[PlannedRun]:
        """Short runs that choose learning rates."""
        return [run for cell in self.cells for run in cell.sweep.values()]

    @property
    def most_runs_of_a_phase(self) -> int:
        """Runs of the sweep, or of the comparison itself, whichever are more."""
        return max(len(self.sweep_runs), len(self.cells) * len(self.comparison.seeds))

    def runs(self, learning_rates: Mapping[str, float]) -> list[PlannedRun]:
        """The runs that are compared, seed by seed, so that whatever is done first is fair already.

        Args:
            learning_rates: what the sweep chose, by the labels of cells; cells without a learning rate are left out.
        """
        directory = self.folder / RUNS_FOLDER
        return [
            _planned(cell.label, directory, cell.settings, f"seed{seed}", seed, learning_rates[cell.label])
            for seed in self.comparison.seeds
            for cell in self.cells
            if cell.label in learning_rates
        ]


def make_plan(comparison: ComparisonSettings, folder: Path) -> Plan:
    """Resolve every run of a comparison whose folder is `folder`.

    Raises:
        ValueError: a run's settings do not hold, a budget that buys no iteration, a sweep over rewards in units of each
            run's own, two variants that are the same, or two runs that would share a folder.
    """
    cells, left_out = [], []
    for reward in comparison.rewards or (None,):
        for variant in comparison.variants:
            if reward is not None and reward.label in variant.not_with:
                left_out.append((variant.label, reward.label))
            else:
                cells.append(_make_cell(comparison, folder, variant, reward))
    _refuse_twins(cells)
    plan = Plan(comparison, folder, tuple(cells), tuple(left_out))
    _refuse_shared_folders([*plan.sweep_runs, *plan.runs({cell.label: cell.settings.learning_rate for cell in cells})])
    return plan


def _make_cell(
    comparison: ComparisonSettings, folder: Path, variant: VariantSettings, reward: RewardChoice | None
) -> Cell:
    several = len(comparison.rewards) > 1 and reward is not None
    label = f"{variant.label} ({reward.label})" if several and reward is not None else variant.label
    try:
        settings = _settings_of(comparison, variant, reward)
        rates = variant.learning_rates or (comparison.sweep.learning_rates if comparison.sweep else ())
        if len(rates) == 1:
            settings = _with_learning_rate(settings, rates[0])
        sweep = _plan_sweep(comparison, folder, label, settings, rates) if len(rates) > 1 else {}
        return Cell(label, within_budget(_without_evaluation(settings), comparison.budget), sweep)
    except ValueError as error:
        raise ValueError(f"variant {label!r}: {error}") from None


def _settings_of(comparison: ComparisonSettings, variant: VariantSettings, reward: RewardChoice | None) -> RunSettings:
    """The base run with what differs: of all runs first, then of the reward, then of the variant, then of both."""
    values: dict[str, Any] = read_values(Path(comparison.base), comparison.overrides)
    of_reward, of_both = (reward.overrides, variant.overrides_with.get(reward.label, ())) if reward else ((), ())
    for override in (*of_reward, *variant.overrides, *of_both):
        apply_override(values, override)
    values["name"] = slug(variant.label) if reward is None else f"{slug(reward.label)}-{slug(variant.label)}"
    return parse_settings(values)


def _plan_sweep(
    comparison: ComparisonSettings, folder: Path, label: str, settings: RunSettings, rates: Sequence[float]
) -> dict[float, PlannedRun]:
    sweep, directory = comparison.sweep, folder / SWEEP_FOLDER
    assert sweep is not None, "several learning rates without a sweep are refused"
    if settings.reward_normalisation == "running":
        raise ValueError(
            "reward_normalisation=running gives each run units of its own, in which a sweep cannot compare learning "
            "rates; set reward_normalisation=scale, or leave the variant one of learning_rates"
        )
    short = within_budget(_judged_by(settings, sweep, folder), comparison.budget, sweep.budget_share)
    return {rate: _planned(label, directory, short, f"lr{rate:g}", sweep.seed, rate) for rate in sorted(rates)}


def _judged_by(settings: RunSettings, sweep: SweepSettings, folder: Path) -> RunSettings:
    """Settings whose evaluation is that of the sweep: its prompts, and the trained reward alone."""
    prompts = PromptSettings(train=str(folder / TRAIN_FILE), held_out=str(folder / SWEEP_FOLDER / SWEEP_PROMPTS))
    evaluation = settings.evaluation.model_copy(update={"images": sweep.images, "rewards": ()})
    return settings.model_copy(update={"prompts": prompts, "evaluation": evaluation})


def _without_evaluation(settings: RunSettings) -> RunSettings:
    """Settings of a run that leaves the held-out table to the evaluation of all runs."""
    return settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"images": 0})})


def _planned(
    cell: str, directory: Path, settings: RunSettings, suffix: str, seed: int, learning_rate: float
) -> PlannedRun:
    name = f"{settings.name}-{suffix}"
    named = settings.model_copy(update={"name": name, "output_dir": str(directory), "seed": seed})
    return PlannedRun(cell, _with_learning_rate(named, learning_rate), directory / name)


def _with_learning_rate(settings: RunSettings, learning_rate: float) -> RunSettings:
    learner = settings.learner.model_copy(update={"learning_rate": learning_rate})
    return settings.model_copy(update={"learner": learner})


def _refuse_twins(cells: Sequence[Cell]) -> None:
    """Refuse variants that would make the same runs.

    Raises:
        ValueError: which.
    """
    seen: dict[str, str] = {}
    for cell in cells:
        settings = cell.settings.model_copy(update={"name": ""}).model_dump_json() + str(list(cell.sweep))
        twin = seen.setdefault(settings, cell.label)
        if twin != cell.label:
            raise ValueError(f"{twin!r} and {cell.label!r} have the same settings; give one of them other overrides")


def _refuse_shared_folders(runs: Sequence[PlannedRun]) -> None:
    """Refuse runs of one folder, of which the first would be taken for the others.

    Raises:
        ValueError: which.
    """
    seen: dict[Path, PlannedRun] = {}
    for run in runs:
        twin = seen.setdefault(run.folder, run)
        if twin is not run:
            raise ValueError(
                f"{_in_words(twin)} and {_in_words(run)} would both make the folder {run.folder}; rename one of the "
                "labels, or choose learning rates that differ in their first six digits"
            )


def _in_words(run: PlannedRun) -> str:
    return f"{run.cell!r} (learning rate {run.settings.learning_rate!r}, seed {run.settings.seed})"
