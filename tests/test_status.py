"""jobs/status.py: where a run stands, told by the files of its folder alone."""

import json
import os
from pathlib import Path

import pytest
import yaml
from run_folders import RESULTS, reward_row, write_run_folder

from jobs.status import main
from pipeline.report.status import read_status
from pipeline.report.status_text import status_text

NOW = 2.0e9


def write_at(path: Path, text: str, age: float) -> None:
    """A file that is `age` seconds old at NOW."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (NOW - age, NOW - age))


def write_checkpoint(folder: Path, iteration: int, age: float) -> None:
    position = json.dumps({"next_iteration": iteration, "policy_version": iteration, "seconds": 10.0 * iteration})
    for name, text in (("position.json", position), ("manifest.json", "{}")):
        write_at(folder / "checkpoints" / f"iteration_{iteration:06d}" / name, text, age)


def facts_of(folder: Path) -> dict[str, str]:
    """What is printed of a run, by the name of the fact."""
    first, *lines = status_text(read_status(str(folder)), NOW).splitlines()
    assert first == str(folder)
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two iterations out of 24, which wrote its metrics 30 seconds ago."""
    folder = write_run_folder(tmp_path / "run", [1.0, 2.5])
    for name, age in (("config.yaml", 100), ("metrics.jsonl", 30)):
        write_at(folder / name, (folder / name).read_text(), age)
    write_at(folder / "environment.json", "{}", 90)
    return folder


def test_a_finished_run_needs_nothing(capsys):
    main([str(RESULTS / "demo")])
    printed = capsys.readouterr().out
    assert "TailorPO-G on clip, seed 0" in printed and "24 of 24 (1,536 trajectories)" in printed
    rewards = json.loads((RESULTS / "demo" / "summary.json").read_text())["evaluation"]
    told = [f"{name} {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" for name, row in rewards.items()]
    assert list(rewards) == ["clip", "scene_judge"] and f"{', '.join(told)}\n" in printed
    assert printed.endswith("nothing is left to do\n\n")


def test_a_run_that_goes_on_says_how_far_it_is(folder):
    for iteration, age in ((1, 50), (2, 25)):
        write_checkpoint(folder, iteration, age)
    facts = facts_of(folder)
    assert facts["iterations"] == "2 of 24 (128 trajectories)"
    assert facts["state"] == "learning, or interrupted: it last wrote 25 s ago, an iteration takes 10 s"
    assert facts["last"].startswith("iteration 2: reward 2.5000, loss 0.6890, implicit_accuracy 0.5000")
    assert facts["checkpoint"] == "after iteration 2, 25 s old" and facts["evaluation"] == "not yet"
    assert facts["resume"] == f"python jobs/align.py --resume {folder} (goes on after iteration 2)"


def test_iterations_after_the_checkpoint_are_made_again(folder):
    write_checkpoint(folder, 1, 40)
    assert facts_of(folder)["resume"].endswith("(goes on after iteration 1, the last 1 of those done are made again)")


def test_a_checkpoint_that_is_being_written_does_not_count(folder):
    write_checkpoint(folder, 1, 40)
    write_checkpoint(folder, 2, 1)
    (folder / "checkpoints" / "iteration_000002" / "manifest.json").unlink()
    assert facts_of(folder)["checkpoint"] == "after iteration 1, 40 s old"


def test_a_run_that_has_just_begun(tmp_path):
    folder = write_run_folder(tmp_path / "run", [])
    facts = facts_of(folder)
    assert facts["iterations"].startswith("0 of 24") and facts["last"] == "no iteration yet"
    assert facts["state"].startswith("starting") and facts["checkpoint"] == "none"
    assert facts["resume"].endswith("(goes on after iteration 0)")


def test_a_run_whose_time_is_spent_has_only_its_evaluation_left(tmp_path):
    facts = facts_of(write_run_folder(tmp_path / "run", [1.0, 2.0], budget_seconds=20))
    assert facts["iterations"] == "2, 20 s of 20 s spent (128 trajectories)"
    assert facts["state"].startswith("evaluating")


def test_a_run_that_is_not_to_be_evaluated_says_so(tmp_path):
    folder = write_run_folder(tmp_path / "run", [1.0])
    values = yaml.safe_load((folder / "config.yaml").read_text()) | {"evaluation": {"images": 0}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    facts = facts_of(folder)
    assert facts["evaluation"] == "none asked for (evaluation.images=0)"


def test_a_failure_is_told_until_the_run_is_taken_up(folder):
    write_at(folder / "error.log", "RewardError: reward 'clip' returned nan\nmore\n", 20)
    assert facts_of(folder)["state"] == (
        f"stopped by a failure, see {folder / 'error.log'}: RewardError: reward 'clip' returned nan"
    )
    write_at(folder / "environment.json", "{}", 10)
    assert facts_of(folder)["state"].startswith("learning, or interrupted: it last wrote 10 s ago")


def test_folders_that_are_no_runs_are_named_after_the_others(folder, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit) as exit_information:
        main([str(empty), str(folder), str(tmp_path / "missing")])
    assert str(exit_information.value).splitlines() == [
        f"error: {empty} is no run folder: it has no config.yaml",
        f"{tmp_path / 'missing'} is no run folder: it has no config.yaml",
    ]
    assert str(folder) in capsys.readouterr().out


def test_an_evaluation_is_told_by_the_rewards_of_the_run(folder):
    (folder / "evaluation.json").write_text(
        json.dumps({"rewards": {"clip": reward_row(0.25), "clip: x": reward_row(1)}})
    )
    assert facts_of(folder)["evaluation"] == "clip +0.2500 [+0.1500, +0.3500]"
