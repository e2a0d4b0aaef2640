"""Run folders read back: what they cost, which belong together, and what is said of one that is malformed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from run_folders import RESULTS, UNGUIDED, iteration_metrics, reward_row, write_run_folder

from pipeline.report.comparison import compare
from pipeline.report.costs import network_calls_before, seconds_before, trajectories_before, trajectories_learnt
from pipeline.report.held_out import rows_of_runs, rows_over_seeds
from pipeline.report.history import read_run
from pipeline.report.writing import write_report

# What a run is


def test_a_committed_run_is_read_whole():
    run = read_run(RESULTS / "demo")
    lines = (RESULTS / "demo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert run.name == "demo" and run.seed == 0 and len(run.metrics) == 24
    assert run.series("reward").tolist() == [json.loads(line)["reward"] for line in lines]
    steps = run.step_series("step_accepted")
    assert steps is not None and steps.shape == (24, 5)
    assert run.evaluation is not None and run.evaluation.rewards["clip"].pairs == 1536


def test_an_unfinished_run_is_read_up_to_its_last_whole_line(tmp_path):
    folder = write_run_folder(tmp_path / "run", [1.0, 2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "rew')
    run = read_run(folder)
    assert run.series("reward").tolist() == [1.0, 2.0]
    assert run.evaluation is None and run.environment is None


def test_a_mean_over_nothing_is_nan_and_a_metric_that_is_not_kept_too(tmp_path):
    folder = write_run_folder(tmp_path / "run", [])
    lines = [iteration_metrics(0, 1.0, loss=None), iteration_metrics(1, 1.0)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    np.testing.assert_array_equal(run.series("loss"), [np.nan, 0.689])
    assert np.isnan(run.series("unheard_of")).all()
    assert run.step_series("step_accepted") is None


def test_a_method_that_draws_no_images_has_no_reward_curve(tmp_path):
    offline = {"name": "diffusion_dpo", "data": "pairs"}
    folders = [
        write_run_folder(tmp_path / "off", [], method=offline, learner={"minibatch_size": 32}),
        write_run_folder(tmp_path / "on", [1.0, 2.0]),
    ]
    lines = [iteration_metrics(index, None) for index in range(2)]
    for line in lines:
        line.pop("step_gap")
    (folders[0] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert np.isnan(read_run(folders[0]).series("reward")).all()
    for chosen in (folders, folders[:1]):
        page = write_report(chosen, tmp_path / f"report-{len(chosen)}").read_text(encoding="utf-8")
        assert "Training draws no images here, and so has no rewards to show: " in page


def test_costs_are_what_was_spent_before_an_iteration(tmp_path):
    folder = write_run_folder(tmp_path / "run", [])
    lines = [iteration_metrics(index, 1.0, seconds) for index, seconds in enumerate([10.0, 20.0, 40.0])]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    assert trajectories_before(run).tolist() == [0, 64, 128]
    assert seconds_before(run).tolist() == [0.0, 10.0, 30.0]
    # Guided, T = 20, K = 5: 30 policy calls, 5 with a gradient, 5 of the reference, 5 of the learner.
    assert network_calls_before(run).tolist() == [0, 64 * 45, 128 * 45]


def test_a_policy_that_is_a_version_old_has_cost_what_was_spent_before_that_version(tmp_path):
    folder = write_run_folder(tmp_path / "run", [])
    ages = [0, 1, 1, 0]
    lines = [iteration_metrics(index, 1.0, 10.0 * (index + 1), policy_age=age) for index, age in enumerate(ages)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    assert trajectories_before(run).tolist() == [0, 0, 64, 192]
    assert trajectories_learnt(run).tolist() == [0, 64, 128, 192]
    assert network_calls_before(run).tolist() == [0, 0, 64 * 45, 192 * 45]
    assert seconds_before(run).tolist() == [0.0, 0.0, 10.0, 60.0]


def test_forward_calls_without_guidance_by_hand():
    settings = read_run(RESULTS / UNGUIDED).settings
    work = settings.work
    assert (work.policy_calls, work.policy_gradient_calls, work.reference_calls, work.learner_calls) == (25, 0, 5, 5)
    assert settings.network_calls_per_trajectory == 35


# Which runs belong together


def test_seeds_are_repeats_and_methods_are_named_by_the_method(tmp_path):
    folders = [
        write_run_folder(tmp_path / "guided-seed1", [1.0], seed=1),
        write_run_folder(tmp_path / "plain-seed0", [1.0], like=UNGUIDED),
        write_run_folder(tmp_path / "guided-seed0", [1.0], seed=0),
    ]
    comparison = compare([read_run(folder) for folder in folders])
    assert [method.label for method in comparison.methods] == ["TailorPO-G", "TailorPO"]
    assert [[run.name for run in method.runs] for method in comparison.methods] == [
        ["guided-seed0", "guided-seed1"],
        ["plain-seed0"],
    ]


def test_where_a_run_was_placed_makes_no_method_of_it(tmp_path):
    placed = {"rollout": {"trajectories": 64, "batch_size": 32, "max_workers": 7, "num_gpus": 0.5}, "seed": 1}
    folders = [
        write_run_folder(tmp_path / "one", [1.0], rollout={"trajectories": 64, "batch_size": 32}),
        write_run_folder(tmp_path / "two", [1.0], **placed, checkpoint={"every": 5}, output_dir="elsewhere"),
    ]
    (method,) = compare([read_run(folder) for folder in folders]).methods
    assert len(method.runs) == 2


def test_methods_of_one_name_are_told_apart_by_what_their_runs_are_called(tmp_path):
    folders = [
        write_run_folder(tmp_path / f"{kind}-seed{seed}", [1.0], seed=seed, iterations=iterations)
        for kind, iterations in (("short", 10), ("long", 20))
        for seed in (1, 10)
    ]
    comparison = compare([read_run(folder) for folder in folders])
    assert [method.label for method in comparison.methods] == ["TailorPO-G (short)", "TailorPO-G (long)"]


def test_methods_of_one_name_and_one_run_name_are_told_apart_by_their_folders(tmp_path):
    folders = [
        write_run_folder(tmp_path / str(iterations) / "demo", [1.0], iterations=iterations) for iterations in (10, 20)
    ]
    labels = [method.label for method in compare([read_run(folder) for folder in folders]).methods]
    assert labels == [f"TailorPO-G (demo) ({folder})" for folder in folders]


def test_the_same_run_twice_is_refused(tmp_path):
    folders = [write_run_folder(tmp_path / name, [1.0]) for name in ("one", "two")]
    with pytest.raises(ValueError, match=f"{folders[0]} and {folders[1]} have the same settings and the same seed 0"):
        compare([read_run(folder) for folder in folders])


def test_variants_with_labels_of_their_own_are_no_repeats_though_their_settings_say_so(tmp_path):
    learners = {"one": {"num_workers": 1}, "two": {"num_workers": 2}}
    folders = [write_run_folder(tmp_path / name, [1.0], learner=learner) for name, learner in learners.items()]
    labels = dict(zip(folders, ("1 learner", "2 learners"), strict=True))
    methods = compare([read_run(folder) for folder in folders], labels).methods
    assert [(method.label, len(method.runs)) for method in methods] == [("1 learner", 1), ("2 learners", 1)]


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one run folder"):
        compare([])


# The held-out comparisons


def evaluated(tmp_path: Path, differences: list[float | None]):
    """A method of a run per difference; None is a run that is not evaluated."""
    runs = []
    for seed, difference in enumerate(differences):
        evaluation = None
        if difference is not None:
            measure = {"base": 1.0, "aligned": 1.0 - difference, "low": -2.0, "high": 2.0}
            evaluation = {"rewards": {"clip": reward_row(difference)}, "hacking": {"diversity": measure}}
        runs.append(read_run(write_run_folder(tmp_path / f"seed{seed}", [1.0], evaluation=evaluation, seed=seed)))
    return compare(runs)


def test_a_single_run_keeps_the_interval_of_its_evaluation(tmp_path):
    reward, measure = rows_over_seeds(evaluated(tmp_path, [0.5, None]))
    assert (reward.kind, reward.measure, reward.runs, reward.pairs, reward.win_rate) == ("reward", "clip", 1, 128, 0.6)
    assert (reward.low, reward.difference, reward.high) == (0.4, 0.5, 0.6)
    assert (measure.kind, measure.measure, measure.difference, measure.low) == ("hacking", "diversity", -0.5, -2.0)
    assert measure.win_rate is None and measure.pairs is None


def test_several_runs_are_averaged_and_their_spread_and_own_intervals_are_the_interval(tmp_path):
    comparison = evaluated(tmp_path, [1.0, 2.0, 3.0])
    reward = rows_over_seeds(comparison)[0]
    assert (reward.run, reward.seed, reward.runs, reward.pairs) == (None, None, 3, 3 * 128)
    assert (reward.base, reward.aligned, reward.difference) == (20.0, 22.0, 2.0)
    assert (reward.high - reward.low) / 2 == pytest.approx(np.hypot(4.302653 / np.sqrt(3), 0.1), abs=1e-6)
    assert [row.difference for row in rows_of_runs(comparison) if row.kind == "reward"] == [1.0, 2.0, 3.0]


def test_an_evaluation_file_counts_before_the_summary_and_may_say_more(tmp_path):
    folder = write_run_folder(tmp_path / "run", [1.0])
    (folder / "summary.json").write_text(json.dumps({"name": "run", "evaluation": {"clip": reward_row(0.25)}}))
    assert read_run(folder).evaluation.rewards["clip"].difference == 0.25
    (folder / "evaluation.json").write_text(
        json.dumps({"rewards": {"clip": reward_row(0.5) | {"seeds": [1]}}, "verdict": "honest", "images": 7})
    )
    evaluation = read_run(folder).evaluation
    assert evaluation.rewards["clip"].difference == 0.5
    assert evaluation.verdict == "honest" and evaluation.hacking == {}


def test_a_summary_without_an_evaluation_is_none(tmp_path):
    folder = write_run_folder(tmp_path / "run", [1.0])
    (folder / "summary.json").write_text(json.dumps({"name": "run", "evaluation": None}))
    assert read_run(folder).evaluation is None


# Folders that are malformed


def line(**changes) -> str:
    return json.dumps(iteration_metrics(1, 1.0) | changes)


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("config.yaml", "name: [", "config.yaml does not hold: "),
        ("config.yaml", "name: x\nunheard: 1\n", "unknown setting unheard"),
        ("metrics.jsonl", "", "no finished iteration yet"),
        ("metrics.jsonl", "{]\n", "metrics.jsonl has a line that is no JSON"),
        ("metrics.jsonl", "[]\n", "line 1: [] is no object"),
        ("metrics.jsonl", line() + "\n", "line 1: iteration 1 where 0 comes next"),
        ("metrics.jsonl", line(iteration=0, reward=None) + "\n", "line 1: reward=None is no number"),
        ("metrics.jsonl", line(iteration=0, seconds="1") + "\n", "line 1: seconds='1' is no number"),
        ("metrics.jsonl", line(iteration=0, step_gap=[1.0]) + "\n", "step_gap has 1 values for 5 trained steps"),
        ("evaluation.json", "{", "evaluation.json is no evaluation"),
        ("evaluation.json", "{}", "rewards: Field required"),
        ("evaluation.json", '{"rewards": {"clip": {"base_mean": 1}}}', "rewards.clip.aligned_mean: Field required"),
        ("evaluation.json", json.dumps({"rewards": {"clip": reward_row(0.5, -1.0)}}), "is above high"),
        ("evaluation.json", json.dumps({"rewards": {"clip": reward_row(np.nan)}}), "finite number"),
        ("summary.json", '{"evaluation": 3}', "summary.json is no evaluation"),
        ("environment.json", "{", "environment.json is no JSON"),
        ("environment.json", "[]", "environment.json holds no object"),
    ],
)
def test_a_malformed_folder_is_named_with_its_fault(file, content, fault, tmp_path):
    folder = write_run_folder(tmp_path / "broken", [1.0])
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(fault)) as caught:
        read_run(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is no run folder"):
        read_run(tmp_path)
