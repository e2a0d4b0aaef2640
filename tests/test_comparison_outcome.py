"""How a comparison ends: with the report, or with everything that failed and is missing."""

from pathlib import Path

import pytest
from comparisons import plan_of

from jobs.compare import evaluate_phase
from pipeline.comparison.loading import note_divergence
from pipeline.comparison.outcome import Outcome, closing_error
from pipeline.comparison.plan import Plan

REPORT = Path("comparison/report.html")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two variants of one seed, without a sweep."""
    return plan_of(tmp_path, sweep=None, seeds=[0])


def test_all_is_well_where_nothing_failed_and_there_is_a_report(plan: Plan) -> None:
    assert closing_error(plan, Outcome({}), REPORT) is None


def test_what_failed_is_named_and_so_is_the_report_of_what_there_is(plan: Plan) -> None:
    outcome = Outcome({Path("runs/a"): "the reward is down"}, "a server is down; details: comparison/error.log")
    assert str(closing_error(plan, outcome, REPORT)).splitlines() == [
        "error: 1 runs failed, and what depends on them is missing:",
        "  runs/a: the reward is down",
        "the evaluation failed: a server is down; details: comparison/error.log",
        "The report of what there is lies in comparison/report.html",
        f"All that was done is kept; when the cause is gone, continue with --resume {plan.folder}",
    ]
    alone = str(closing_error(plan, Outcome({}, "a server is down"), REPORT))
    assert alone.startswith("error: the evaluation failed: a server is down\nThe report of")


def test_a_comparison_of_which_every_run_diverged_is_no_success(plan: Plan) -> None:
    for run in plan.runs({cell.label: 0.01 for cell in plan.cells}):
        note_divergence(run.folder, "NonFiniteScoreError: nan")
    assert str(closing_error(plan, Outcome({}), None)).splitlines() == [
        "error: no run has come to its end, and there is nothing to report:",
        "  TailorPO, seed 0, diverged and is left out: NonFiniteScoreError: nan",
        "  TailorPO, β 1, seed 0, diverged and is left out: NonFiniteScoreError: nan",
        "A run that diverged is tried again when diverged.txt is removed from its folder",
    ]


def test_a_sweep_of_which_every_run_diverged_is_no_success(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    for run in plan.sweep_runs:
        note_divergence(run.folder, "NonFiniteScoreError: nan")
    error = str(closing_error(plan, Outcome({}), None))
    assert "TailorPO has no runs: with every learning rate of the sweep it diverged." in error


def test_an_evaluation_that_cannot_be_made_leaves_its_reason_and_does_not_end_the_job(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, sweep=None, seeds=[0], overrides=["model.path=/nowhere/at/all"])
    reason = evaluate_phase(plan, plan.runs({cell.label: 0.01 for cell in plan.cells}), print)
    assert reason is not None and reason.startswith("model.path '/nowhere/at/all'")
    assert reason.endswith(f"; details: {plan.folder / 'error.log'}")
    assert (plan.folder / "error.log").read_text(encoding="utf-8").startswith(reason.rpartition("; details")[0])
    assert evaluate_phase(plan, [], print) is None
