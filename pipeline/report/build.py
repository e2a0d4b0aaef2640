"""From a comparison to the content of its report."""

from collections.abc import Sequence

from pipeline.report.comparison import Comparison
from pipeline.report.content import Report, Section
from pipeline.report.diagnostics_section import diagnostics_section
from pipeline.report.held_out_section import between_methods_section, hacking_section, held_out_section
from pipeline.report.pictures_section import pictures_section
from pipeline.report.provenance_section import (
    budget_section,
    environment_section,
    iterations_done,
    settings_section,
)
from pipeline.report.training_section import training_section
from pipeline.report.wording import listed


def build_report(comparison: Comparison, more: Sequence[Section] = ()) -> Report:
    """All sections that the runs have something for, what matters most first; `more` follow those about held-out
    prompts.

    Raises:
        ValueError: a picture of a run that is none; the message names it.
    """
    single = len(comparison.runs) == 1
    sections = (
        held_out_section(comparison),
        between_methods_section(comparison),
        hacking_section(comparison),
        *more,
        training_section(comparison),
        pictures_section(comparison),
        diagnostics_section(comparison.runs[0]) if single else None,
        budget_section(comparison),
        settings_section(comparison),
        environment_section(comparison),
    )
    return Report(_title(comparison), _lead(comparison), tuple(section for section in sections if section is not None))


def _title(comparison: Comparison) -> str:
    runs, methods = comparison.runs, comparison.methods
    if len(runs) == 1:
        return f"{runs[0].name}: {runs[0].settings.method.title}"
    if len(methods) == 1:
        return f"{methods[0].label}: {len(runs)} runs"
    return f"{len(methods)} methods, {len(runs)} runs"


def _lead(comparison: Comparison) -> str:
    """What was aligned with what, and how far the runs have come."""
    runs = comparison.runs
    models = listed(list(dict.fromkeys(run.settings.model.path for run in runs)))
    aligned = f"aligned with {listed(_teachers(comparison))}"
    names = listed([method.label for method in comparison.methods])
    finished = sum(run.is_finished for run in runs)
    if len(runs) == 1:
        progress = f"{iterations_done(runs[0])} iterations are done."
    else:
        progress = f"{finished} of {len(runs)} runs have all their iterations."
    return f"{names}: {models} {aligned}. {progress}"


def _teachers(comparison: Comparison) -> list[str]:
    """What the methods learn from: rewards, and pairs of images."""
    learning = [method for method in comparison.methods if method.learns_from_rewards]
    rewards = list(dict.fromkeys(run.settings.reward_title for method in learning for run in method.runs))
    from_pairs = comparison.labels_without_reward
    teachers = [f"the reward {listed(rewards)}"] if rewards else []
    if not from_pairs:
        return teachers
    return [*teachers, f"pairs of images ({listed(from_pairs)})" if teachers else "pairs of images"]
