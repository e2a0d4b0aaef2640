"""Runs of a cell learn from the same pairs of images, whatever became of their source meanwhile."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.comparison.plan import PlannedRun
from pipeline.run_folder import PREFERENCES_FILE, write_json


def hold_to_their_pairs(runs: Sequence[PlannedRun]) -> None:
    """State in the folder of every run the pairs that a run of its cell began with; it refuses to begin with others.

    Raises:
        ValueError: runs of a cell have begun with different ones.
    """
    stated = [(run, statement) for run in runs if (statement := _read(run.folder)) is not None]
    first: dict[str, tuple[PlannedRun, dict[str, Any]]] = {}
    for run, statement in stated:
        begun, pairs = first.setdefault(run.cell, (run, statement))
        if pairs["sha256"] != statement["sha256"]:
            raise ValueError(
                f"{begun.folder} and {run.folder} are runs of {run.cell!r} and learnt from different pairs of "
                f"images of {statement['source']!r}; restore those of one, and remove the folder of the other"
            )
    for run in runs:
        if run.cell in first and _read(run.folder) is None:
            write_json(run.folder / PREFERENCES_FILE, first[run.cell][1])


def _read(folder: Path) -> dict[str, Any] | None:
    file = folder / PREFERENCES_FILE
    if not file.is_file():
        return None
    statement: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return statement
