"""Intervals over seeds and prompts, and methods against one another, from the pairs of images behind evaluations."""

import json
from dataclasses import asdict

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import reward_row, write_run_folder
from scipy.stats import t as student

from pipeline.claims.intervals import interval_over_prompts
from pipeline.report.aggregate import estimate_of_runs, estimate_over_seeds
from pipeline.report.build import build_report
from pipeline.report.comparison import compare
from pipeline.report.held_out import rows_over_seeds
from pipeline.report.history import read_run
from pipeline.report.method_differences import method_differences
from pipeline.report.pairs import PAIRS_FILE, read_pairs, share_base, share_pairs
from pipeline.report.writing import write_report
from pipeline.training_record import training_record


def pairs_of(aligned, measure="clip", kind="reward", images=2) -> pd.DataFrame:
    """Rows of a measure, `images` of each prompt; the base model scores 0 everywhere."""
    samples = np.arange(len(aligned))
    prompts = [f"prompt {sample // images}" for sample in samples]
    columns = {"prompt": prompts, "kind": kind, "measure": measure, "sample": samples, "base": 0.0}
    return pd.DataFrame({**columns, "aligned": np.asarray(aligned, dtype=np.float64)})


def write_run(folder, seed, *tables, **settings):
    """A run folder whose evaluation and pairs agree on the mean difference."""
    rewards = {
        table.measure[0]: reward_row(float(table.aligned.mean())) for table in tables if table.kind[0] == "reward"
    }
    write_run_folder(folder, [1.0], evaluation={"rewards": rewards}, seed=seed, **settings)
    pd.concat(tables).to_parquet(folder / PAIRS_FILE)
    return folder


def differences(values, images=2) -> pd.Series:
    table = pairs_of(values, images=images).set_index(["prompt", "sample"])
    return table.aligned - table.base


def test_prompts_that_all_runs_share_widen_the_interval_until_it_covers():
    """The spread of the seeds alone misses the truth most of the time where prompts differ more than seeds."""
    rng, truth, trials = np.random.default_rng(0), 0.3, 200
    covered = covered_by_seeds = 0
    for _ in range(trials):
        prompts, seeds = np.repeat(rng.normal(truth, 1.0, 30), 2), rng.normal(0.0, 0.02, 3)
        runs = [differences(prompts + seed + rng.normal(0.0, 0.1, 60)) for seed in seeds]
        estimate, by_seeds = estimate_of_runs(runs), estimate_over_seeds([run.mean() for run in runs])
        covered += estimate.low <= truth <= estimate.high
        covered_by_seeds += by_seeds.low <= truth <= by_seeds.high
    assert covered / trials > 0.9
    assert covered_by_seeds / trials < 0.6


def test_seeds_that_differ_more_than_prompts_leave_the_interval_over_seeds():
    runs = [differences([seed, seed, seed, seed]) for seed in (1.0, 2.0, 3.0)]
    estimate, by_seeds = estimate_of_runs(runs), estimate_over_seeds([1.0, 2.0, 3.0])
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((2.0, by_seeds.low, by_seeds.high))


def test_one_run_has_the_interval_over_its_prompts():
    estimate = estimate_of_runs([differences([0.0, 0.0, 1.0, 1.0])])
    assert (estimate.low, estimate.mean, estimate.high) == (0.0, 0.5, 1.0)


def test_pairs_of_a_single_prompt_are_resampled_one_by_one():
    estimate = estimate_of_runs([differences([0.0, 1.0, 0.0, 1.0], images=4)])
    assert estimate.low < estimate.mean == 0.5 < estimate.high
    of_claims = interval_over_prompts(np.array([0.0, 1.0, 0.0, 1.0]), ["a red circle"] * 4, seed=0)
    assert of_claims["low"] < of_claims["mean"] == 0.5 < of_claims["high"]


def test_the_held_out_table_counts_prompts_and_seeds(tmp_path):
    """Two prompts that disagree: no spread of seeds, and all the same no certainty."""
    folders = [write_run(tmp_path / f"{seed}", seed, pairs_of([0.0, 0.0, 1.0, 1.0])) for seed in range(3)]
    (row,) = rows_over_seeds(compare([read_run(folder) for folder in folders]))
    assert (row.low, row.difference, row.high, row.runs) == (0.0, 0.5, 1.0, 3)


def test_noise_that_seeds_do_not_share_is_averaged_away(tmp_path):
    """Each run's own interval is of its pictures' noise as well, which means over the runs have less of."""
    rng, seeds, prompts = np.random.default_rng(0), 5, 200
    gains = rng.normal(0.2, 1.0, (seeds, prompts))
    runs = [
        read_run(write_run(tmp_path / f"{seed}", seed, pairs_of(np.repeat(gains[seed], 2)))) for seed in range(seeds)
    ]
    (row,) = rows_over_seeds(compare(runs))
    of_seeds = student.ppf(0.975, seeds - 1) * gains.mean(axis=1).std(ddof=1) / np.sqrt(seeds)
    of_prompts = 1.96 * gains.mean(axis=0).std(ddof=1) / np.sqrt(prompts)
    assert (row.high - row.low) / 2 == pytest.approx(np.hypot(of_seeds, of_prompts), rel=0.05)
    assert of_prompts < 0.6 * 1.96 * gains[0].std(ddof=1) / np.sqrt(prompts)


def test_pairs_that_another_evaluation_left_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", 0, pairs_of([0.0, 0.0, 1.0, 1.0]))
    (folder / "evaluation.json").write_text(json.dumps({"rewards": {"clip": reward_row(0.25)}}))
    with pytest.raises(
        ValueError, match=r"is of another evaluation than evaluation\.json .*rose by 0\.5, there by 0\.25"
    ):
        read_run(folder)


def test_methods_are_compared_pair_by_pair_and_seed_by_seed(tmp_path):
    folders = []
    for seed, gain in enumerate((0.25, 0.5)):
        scores = np.array([1.0, 2.0, 3.0, 4.0])
        aspect = pairs_of([1.0, 1.0, 1.0, 1.0], "judge: shapes", "aspect")
        folders.append(write_run(tmp_path / f"a{seed}", seed, pairs_of(scores), aspect, iterations=10))
        folders.append(write_run(tmp_path / f"b{seed}", seed, pairs_of(scores - gain * (scores > 1)), iterations=20))
    comparison = compare([read_run(folder) for folder in folders])
    (row,) = method_differences(comparison)
    first, second = (method.label for method in comparison.methods)
    assert (row.measure, row.first, row.second, row.runs, row.pairs) == ("clip", first, second, 2, 8)
    assert row.difference == pytest.approx(0.75 * (0.25 + 0.5) / 2)
    assert row.win_rate == pytest.approx((6 + 0.5 * 2) / 8)
    assert row.low < row.difference < row.high
    write_report(folders, tmp_path / "report")
    assert pd.read_parquet(tmp_path / "report" / "report_differences.parquet").to_dict("records") == [asdict(row)]
    (section,) = [section for section in build_report(comparison).sections if section.title == "Method against method"]
    assert section.tables[0].rows[0][:3] == ("clip", first, second)
    (budget,) = [section for section in build_report(comparison).sections if section.title == "Budget"]
    assert budget.paragraphs == ("Rollouts and learning of all runs took 40 s together.",)


def test_a_reward_that_preferred_the_pairs_was_trained_on(tmp_path):
    method = {"name": "diffusion_dpo", "data": "pairs", "preferred_by_reward": True}
    scores = pairs_of([1.0, 2.0, 3.0, 4.0])
    folders = [
        write_run(tmp_path / "a", 0, scores),
        write_run(tmp_path / "b", 0, scores, method=method, learner={"minibatch_size": 32}),
    ]
    (folders[1] / "metrics.jsonl").write_text(json.dumps({"iteration": 0, "seconds": 1.0}) + "\n")
    runs = [read_run(folder) for folder in folders]
    assert [reward.name for reward in training_record(runs[1].settings).rewards] == ["clip"]
    comparison = compare(runs)
    (row,) = method_differences(comparison)
    assert row.trained and row.measure == "clip"
    (section,) = [one for one in build_report(comparison).sections if one.title == "Method against method"]
    assert "not from a reward" not in section.paragraphs[0] and section.tables != ()


def test_a_method_that_learnt_from_pairs_of_images_is_not_said_to_have_trained_on_the_reward(tmp_path):
    offline = {"name": "diffusion_dpo", "data": "pairs"}
    scores = pairs_of([1.0, 2.0, 3.0, 4.0])
    folders = [
        write_run(tmp_path / "a", 0, scores),
        write_run(tmp_path / "b", 0, scores, method=offline, learner={"minibatch_size": 32}),
    ]
    for folder in folders[1:]:
        (folder / "metrics.jsonl").write_text(json.dumps({"iteration": 0, "seconds": 1.0}) + "\n")
    comparison = compare([read_run(folder) for folder in folders])
    (row,) = method_differences(comparison)
    assert not row.trained and row.measure == "clip"
    report = build_report(comparison)
    (section,) = [section for section in report.sections if section.title == "Method against method"]
    assert "Diffusion-DPO learns from pairs of images, not from a reward." in section.paragraphs[0]
    assert section.tables == () and section.folded[0].caption == "Rewards that not both trained on"
    assert "aligned with the reward clip and pairs of images (Diffusion-DPO)." in report.lead
    alone = build_report(compare([read_run(folders[1])]))
    assert "aligned with pairs of images." in alone.lead


def test_methods_without_pairs_in_common_are_not_compared(tmp_path):
    folders = [
        write_run(tmp_path / "a", 0, pairs_of([1.0, 2.0, 3.0, 4.0]), iterations=10),
        write_run(tmp_path / "b", 0, pairs_of([1.0, 2.0]), iterations=20),
        write_run_folder(tmp_path / "c", [1.0], iterations=30),
    ]
    assert method_differences(compare([read_run(folder) for folder in folders])) == []


@pytest.mark.parametrize(("base", "rows"), [(1e-7, 1), (0.5, 0)])
def test_images_of_another_base_model_sampling_or_noise_are_no_pairs(tmp_path, base, rows):
    """Prompts and samples are the same all the same; what the base model scored tells."""
    sharpness = pairs_of([1.0, 2.0, 3.0, 4.0], "sharpness", "hacking")
    folders = [
        write_run(tmp_path / "a", 0, pairs_of([1.0, 2.0, 3.0, 4.0]), sharpness, iterations=10),
        write_run(tmp_path / "b", 0, pairs_of([1.0, 2.0, 3.0, 4.0]), sharpness.assign(base=base), iterations=20),
    ]
    assert len(method_differences(compare([read_run(folder) for folder in folders]))) == rows


@hypothesis.settings(deadline=None)
@given(st.lists(st.floats(-100, 100).filter(lambda score: abs(score) > 0.01), min_size=1, max_size=6), st.booleans())
def test_base_scores_agree_but_for_rounding(scores, differ):
    one = pairs_of(scores).assign(base=scores).set_index(["measure", "prompt", "sample"])
    other = one.assign(base=one.base * (1.01 if differ else 1.0001))
    assert share_base(one, other) is not differ
    assert share_base(one, other.rename(index={"clip": "judge"})), "there is nothing to tell them apart by"


def test_runs_of_different_pairs_share_none(tmp_path):
    one, other = (read_pairs(write_run(tmp_path / f"{n}", 0, pairs_of(np.ones(n)))) for n in (4, 6))
    assert share_pairs([one, one], "clip")
    assert not share_pairs([one, other], "clip")
    assert not share_pairs([one, None], "clip")
    assert not share_pairs([one, one], "judge")


def test_a_file_that_is_no_table_of_pairs_is_named(tmp_path):
    path = tmp_path / PAIRS_FILE
    path.write_bytes(b"PAR1, or so")
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        read_pairs(tmp_path)
    pairs_of([1.0]).drop(columns="sample").to_parquet(path)
    with pytest.raises(ValueError, match="it has no column sample"):
        read_pairs(tmp_path)
