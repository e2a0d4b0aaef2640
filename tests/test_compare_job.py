"""jobs/compare.py: every user error in one line, a plan that is printed, and a comparison that survives a kill."""

import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from comparisons import comparison_values, write_base
from job_runs import COMPARE, ITERATIONS, FinishedJob, RunningJob

from actors.adapter_evaluation import UnscoredAdaptersError
from jobs.compare import evaluate_phase, main
from pipeline.comparison.loading import divergence, open_folder
from pipeline.comparison.plan import Plan, PlannedRun, make_plan
from pipeline.comparison.settings import ComparisonSettings
from pipeline.comparison.stopwatch import seconds_spent
from pipeline.comparison.sweep import chosen_learning_rates
from pipeline.config_loading import dump_settings, parse_as
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.report.wording import duration
from pipeline.run_folder import CONFIG_FILE, SUMMARY_FILE, MetricsFile, write_text

pytest_plugins = ["model_fixtures", "job_fixtures"]


def write_comparison(directory: Path, model: Path, **sections: Any) -> Path:
    """A comparison file whose folder is `directory`/comparison."""
    file = directory / "compare.yaml"
    values = comparison_values(write_base(directory, model), **sections)
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the job says as it ends."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert capsys.readouterr().out == ""
    return str(ended.value)


def test_a_dry_run_prints_the_comparison_and_its_plan_and_makes_nothing(
    miniature_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_comparison(tmp_path, miniature_model)
    main(["--config", str(file), "--dry-run", "budget.amount=400"])
    printed = capsys.readouterr().out
    settings = printed.split("\n\n")[0]
    assert yaml.safe_load(settings)["budget"] == {"unit": "network_calls", "amount": 400.0}
    assert "4 runs, of seed 0 and 1 for each variant, after 4 short ones" in printed
    assert not (tmp_path / "comparison").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"variants": [{"label": "G", "overrides": ["method.guidance={}"]}]}, "variant 'G': method.guidance needs a"),
        ({"overrides": ["model.path=/nowhere/at/all"]}, "variant 'TailorPO': model.path '/nowhere/at/all'"),
        ({"overrides": ["prompts.held_out=animals", "prompts.train=animals"]}, "sweep.prompts"),
        ({"overrides": ["evaluation.rewards=[]"]}, "every reward of the comparison is trained on by a variant"),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_the_first(
    miniature_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    message: str,
) -> None:
    assert message in error_of(capsys, "--config", write_comparison(tmp_path, miniature_model, **sections))
    assert not (tmp_path / "comparison").exists()


def test_folders_that_are_there_and_folders_that_are_not_comparisons(
    miniature_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_comparison(tmp_path, miniature_model)
    (tmp_path / "comparison").mkdir()
    assert f"continue it by --resume {tmp_path / 'comparison'}" in error_of(capsys, "--config", file)
    assert "is no folder of a comparison: it has no comparison.yaml" in error_of(capsys, "--resume", tmp_path)
    assert "resumed as it was" in error_of(capsys, "--resume", tmp_path, "seeds=[3]")
    assert "there is no configuration file" in error_of(capsys, "--config", tmp_path / "nowhere.yaml")


def test_a_run_that_diverges_at_its_very_end_leaves_the_evaluation_to_the_others(
    miniature_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = comparison_values(write_base(tmp_path, miniature_model), sweep=None)
    plan = make_plan(parse_as(ComparisonSettings, values), tmp_path / "comparison")
    runs = runs_of(plan)
    asked: list[list[str]] = []

    def evaluate(settings: AdapterEvaluationSettings, *_: Any) -> None:
        asked.append([adapter.label for adapter in settings.adapters])
        if len(asked) == 1:
            raise UnscoredAdaptersError({runs[1].folder.name: "NonFiniteImageError: nan"}, {}, tmp_path)

    monkeypatch.setattr("actors.adapter_evaluation.evaluate_adapters", evaluate)
    monkeypatch.setattr("pipeline.evaluation.preflight.check_evaluation", lambda _: 0)
    assert evaluate_phase(plan, runs, print) is None
    assert [len(labels) for labels in asked] == [len(runs), len(runs) - 1] and runs[1].folder.name not in asked[1]
    assert divergence(runs[1]) == "NonFiniteImageError: nan"


def test_a_run_whose_images_a_reward_has_no_number_for_has_not_diverged(
    miniature_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a reward that divides by the contrast of a blank picture, on the very runs that are hacked."""
    values = comparison_values(write_base(tmp_path, miniature_model), sweep=None)
    plan = make_plan(parse_as(ComparisonSettings, values), tmp_path / "comparison")
    plan.folder.mkdir()
    runs = runs_of(plan)

    def evaluate(*_: Any) -> None:
        raise UnscoredAdaptersError({}, {runs[1].folder.name: "NonFiniteScoreError: 'mine' returned nan"}, tmp_path)

    monkeypatch.setattr("actors.adapter_evaluation.evaluate_adapters", evaluate)
    monkeypatch.setattr("pipeline.evaluation.preflight.check_evaluation", lambda _: 0)
    failure = evaluate_phase(plan, runs, print)
    assert failure is not None and "'mine' returned nan; mend the reward" in failure
    assert divergence(runs[1]) is None


@pytest.fixture(scope="module")
def interrupted(undisturbed_run: tuple[FinishedJob, Path], tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A comparison of two seeds that was killed in the second run, after two iterations: the first has its checkpoint.

    The first is the session's undisturbed run, put where the comparison would have made it.
    """
    directory = tmp_path_factory.mktemp("compare")
    values = comparison_values(
        undisturbed_run[1] / CONFIG_FILE,
        variants=[{"label": "TailorPO-G, guided"}],
        overrides=[
            "evaluation.rewards=[{name: jpeg_compressibility}]",
            "prompts.split=null",
            f"prompts.held_out={directory / 'prompts.txt'}",
        ],
        evaluation={"images_per_prompt": 2},
        seeds=[7, 8],
        budget={"unit": "trajectories", "amount": 8 * ITERATIONS},
        sweep=None,
    )
    write_text(directory / "prompts.txt", "a red circle\na small blue star\n")
    plan = make_plan(parse_as(ComparisonSettings, values), directory / "comparison")
    open_folder(plan)
    first, second = runs_of(plan)
    shutil.copytree(undisturbed_run[1], first.folder)
    write_text(first.folder / CONFIG_FILE, dump_settings(first.settings))
    job = RunningJob("--resume", plan.folder, script=COMPARE)
    try:
        while len(finished_iterations(second)) < 2:
            assert job.process.poll() is None, job.wait()
            time.sleep(0.01)
    finally:
        job.kill()
    return plan


def runs_of(plan: Plan) -> list[PlannedRun]:
    """All of its runs; it has no sweep."""
    return plan.runs(chosen_learning_rates(plan, []))


def finished_iterations(run: PlannedRun) -> list[dict[str, Any]]:
    return MetricsFile(run.folder / "metrics.jsonl").read()


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was_and_writes_its_report(interrupted: Plan) -> None:
    first, second = runs_of(interrupted)
    assert 2 <= len(finished_iterations(second)) < ITERATIONS
    kept = (first.folder / SUMMARY_FILE).stat().st_mtime_ns
    (interrupted.folder.parent / "prompts.txt").unlink()  # the comparison's folder has what it needs
    job = RunningJob("--resume", interrupted.folder, script=COMPARE).wait()
    assert job.exit_code == 0, job.stderr

    assert (first.folder / SUMMARY_FILE).stat().st_mtime_ns == kept, "a finished run was made again"
    assert [line["iteration"] for line in finished_iterations(second)] == list(range(ITERATIONS))
    assert "runs: 2 in all, 1 of them are finished" in job.stdout
    resumed, next_line = [line for line in job.stdout.splitlines() if second.settings.name in line][:2]
    assert resumed.endswith("2/2 tailorpo-g-guided-seed8: resumed")
    assert "iteration 1/" not in next_line, "the interrupted run began anew"
    held_out = pq.read_table(interrupted.folder / "report_held_out.parquet").to_pylist()
    assert {(row["method"], row["seed"]) for row in held_out} == {("TailorPO-G, guided", seed) for seed in (7, 8, None)}
    assert {row["measure"] for row in held_out if row["kind"] == "reward"} == {"clip", "jpeg_compressibility"}
    assert any(row["kind"] == "hacking" for row in held_out)
    assert f"report in {interrupted.folder / 'report.html'}" in job.stdout
    page = (interrupted.folder / "report.html").read_text(encoding="utf-8")
    assert "as many whole iterations as 40 trajectories buy" in page
    spent = seconds_spent(interrupted.folder)
    assert spent is not None and f"All of it took {duration(spent)}, evaluation included." in page
