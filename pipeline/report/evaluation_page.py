"""The page about an evaluation of adapters, which need no run folder: they may come from anywhere."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.report.content import Listing, Picture, Report, Section
from pipeline.report.evaluation_file import EVALUATION_FILE, RunEvaluation, read_evaluation
from pipeline.report.explanations import HACKING, HELD_OUT, INTERVAL_OVER_PAIRS, PAIRS, SPREAD
from pipeline.report.held_out import HeldOutRow, rows_of_evaluation
from pipeline.report.held_out_section import HACKING_COLUMNS, REWARD_COLUMNS, difference_charts, table_of
from pipeline.report.looks import looks_of_labels
from pipeline.report.pictures_section import READABLE_PAIRS, embed
from pipeline.report.wording import listed

SETTINGS_FILE = "evaluation.yaml"
PICTURES = ("best", "median", "worst")


def is_evaluation_folder(folder: Path) -> bool:
    """Whether `jobs/evaluate.py` made this folder."""
    return (folder / SETTINGS_FILE).is_file()


def build_evaluation_report(folder: Path) -> Report:
    """Rewards, measures of hacking and pictures of all adapters that are through.

    Raises:
        ValueError: no adapter is, or a file is malformed; the message names it.
    """
    text = (folder / SETTINGS_FILE).read_text(encoding="utf-8")
    try:
        settings = AdapterEvaluationSettings.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{folder / SETTINGS_FILE} does not hold: {error}") from None
    labels = [adapter.label for adapter in settings.adapters]
    found = {label: read_evaluation(folder / label) for label in labels}
    evaluations = {label: evaluation for label, evaluation in found.items() if evaluation is not None}
    if not evaluations:
        raise ValueError(f"{folder} has no adapter with a finished {EVALUATION_FILE} yet: there is nothing to report")
    names = listed(list(evaluations))
    rows = [
        row for label, evaluation in evaluations.items() for row in rows_of_evaluation(label, evaluation, None, None)
    ]
    return Report(
        title=f"Evaluation of {names}",
        lead=f"{settings.model.path} with and without {names}: {settings.prompts_title} prompts, "
        f"{settings.images_per_prompt} images each. {len(evaluations)} of {len(labels)} adapters are through.",
        sections=(
            _rewards_section([row for row in rows if row.kind == "reward"], list(evaluations)),
            _hacking_section([row for row in rows if row.kind == "hacking"], evaluations),
            _pictures_section(folder, list(evaluations)),
            Section("Settings", listings=(Listing(SETTINGS_FILE, text),)),
        ),
    )


def _rewards_section(rows: list[HeldOutRow], labels: list[str]) -> Section:
    return Section(
        "Rewards",
        paragraphs=(f"{HELD_OUT} {INTERVAL_OVER_PAIRS}",),
        tables=(table_of("Rewards", _by_measure(rows), ("measure", "adapter", *REWARD_COLUMNS)),),
        charts=difference_charts(rows, looks_of_labels(labels)) if len(labels) > 1 else (),
    )


def _hacking_section(rows: list[HeldOutRow], evaluations: dict[str, RunEvaluation]) -> Section:
    return Section(
        "Reward hacking",
        paragraphs=(HACKING, SPREAD),
        points=tuple(f"{label}: {evaluation.verdict}" for label, evaluation in evaluations.items()),
        tables=(table_of("Measures", _by_measure(rows), ("measure", "adapter", *HACKING_COLUMNS)),),
    )


def _pictures_section(folder: Path, labels: list[str]) -> Section:
    pictures = [
        Picture(
            f"{label}, {kind} change",
            f"Pairs of images, each under its prompt: base model and {label}, {kind} change.",
            embed(path),
            READABLE_PAIRS,
        )
        for label in labels
        for kind in PICTURES
        if (path := folder / label / f"{kind}.png").is_file()
    ]
    return Section("Pictures", paragraphs=(PAIRS,), pictures=tuple(pictures))


def _by_measure(rows: list[HeldOutRow]) -> list[HeldOutRow]:
    """Adapters beside one another, measure by measure."""
    order = list(dict.fromkeys(row.measure for row in rows))
    return sorted(rows, key=lambda row: order.index(row.measure))
