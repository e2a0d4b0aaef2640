"""One data set for all runs of a cell."""

import json
from pathlib import Path

import pytest
from comparisons import plan_of

from actors.inputs import check_same_pairs
from pipeline.comparison.pairs_of_cells import hold_to_their_pairs
from pipeline.comparison.plan import PlannedRun
from pipeline.run_folder import PREFERENCES_FILE, write_json

OLD, NEW = ({"source": "pairs", "pairs": 7, "sha256": sha256} for sha256 in ("ab", "cd"))


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    """The sweep of one variant, its runs, and those of another variant."""
    plan = plan_of(tmp_path)
    return [*plan.cells[0].sweep.values(), *plan.runs({"TailorPO": 0.01, "TailorPO, β 1": 0.01})]


def test_a_run_that_is_still_to_begin_refuses_other_pairs_than_the_others_of_its_cell(runs: list[PlannedRun]) -> None:
    begun, *others = runs
    write_json(begun.folder / PREFERENCES_FILE, OLD)
    hold_to_their_pairs(runs)
    for run in others:
        if run.cell == begun.cell:
            check_same_pairs(OLD, run.folder)
            with pytest.raises(ValueError, match="are not those that the run began with"):
                check_same_pairs(NEW, run.folder)
        else:
            assert not run.folder.exists(), "variants may learn from different pairs"


def test_runs_of_a_cell_that_learnt_from_different_pairs_are_refused(runs: list[PlannedRun]) -> None:
    first, second, *_ = runs
    other_cell = next(run for run in runs if run.cell != first.cell)
    write_json(first.folder / PREFERENCES_FILE, OLD)
    write_json(other_cell.folder / PREFERENCES_FILE, NEW)
    hold_to_their_pairs(runs)
    write_json(second.folder / PREFERENCES_FILE, NEW)
    with pytest.raises(ValueError, match=f"{first.folder} and {second.folder} are runs of 'TailorPO' and learnt from"):
        hold_to_their_pairs(runs)
    assert json.loads((second.folder / PREFERENCES_FILE).read_text())["sha256"] == "cd", "nothing was written over"


def test_methods_without_pairs_of_images_state_none(runs: list[PlannedRun]) -> None:
    hold_to_their_pairs(runs)
    assert not any(run.folder.exists() for run in runs)
