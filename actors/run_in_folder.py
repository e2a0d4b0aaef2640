"""A run of many, such as those of a comparison or of the claims: its folder described, and its model aligned."""

from pathlib import Path
from typing import Any, TextIO

from actors.alignment import align
from actors.inputs import inputs_of_run, save_inputs
from pipeline.config import RunSettings
from pipeline.progress import ProgressReporter
from pipeline.run_description import describe_run


def describe_and_align(
    settings: RunSettings, run_directory: Path, circumstances: dict[str, Any], log: TextIO | None = None
) -> None:
    """Read what the run is fed with, state all of it in its folder, which the caller holds alone, and align.

    Args:
        circumstances: what environment.json says beside versions and hardware.
        log: takes the lines of its progress; by default standard output.

    Raises:
        RunFailedError: as `align`.
        ValueError: prompts or pairs of images that cannot be read.
    """
    inputs = inputs_of_run(settings, run_directory)
    describe_run(settings, run_directory, circumstances)
    save_inputs(inputs, settings, run_directory)
    reporter = ProgressReporter(settings.iterations, log, budget_seconds=settings.budget_seconds)
    align(settings, inputs, run_directory, reporter)
