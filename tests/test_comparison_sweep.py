"""The choice of a learning rate, and the prompts that it is made on."""

from pathlib import Path
from typing import Any

import pytest
from comparisons import plan_of
from run_folders import reward_row

from pipeline.comparison.loading import note_divergence
from pipeline.comparison.overview import plan_section
from pipeline.comparison.plan import Plan
from pipeline.comparison.stopwatch import Stopwatch, seconds_spent
from pipeline.comparison.sweep import chosen_learning_rates, read_sweep, sweep_prompts, write_sweep_prompts
from pipeline.demo.grammar import held_out_prompts, train_prompts
from pipeline.prompt_sets import PromptSets
from pipeline.prompts import ANIMALS
from pipeline.report.evaluation_file import EVALUATION_FILE
from pipeline.run_folder import SUMMARY_FILE, write_json

DEMO = PromptSets(train_prompts(), held_out_prompts())


def finish_sweep(plan: Plan, differences: dict[str, dict[float, float]]) -> None:
    """Write the summaries that the runs of the sweep would leave."""
    for cell in plan.cells:
        for rate, run in cell.sweep.items():
            if rate in differences[cell.label]:
                rewards: dict[str, Any] = {"trained": reward_row(differences[cell.label][rate])}
                write_json(
                    run.folder / SUMMARY_FILE, {"iterations": 3, "evaluation": rewards | {"other": reward_row(9)}}
                )


def test_the_rise_chooses_for_each_variant_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    finish_sweep(plan, {"TailorPO": {0.01: 0.2, 0.001: 0.1}, "TailorPO, β 1": {0.01: -0.4, 0.001: -0.3}})
    results = read_sweep(plan)
    assert [(result.cell, result.learning_rate, result.iterations) for result in results] == [
        ("TailorPO", 0.001, 3),
        ("TailorPO", 0.01, 3),
        ("TailorPO, β 1", 0.001, 3),
        ("TailorPO, β 1", 0.01, 3),
    ]
    chosen = chosen_learning_rates(plan, results)
    assert chosen == {"TailorPO": 0.01, "TailorPO, β 1": 0.001}
    section = plan_section(plan, chosen, results)
    assert [(row[1], row[-1]) for row in section.folded[0].rows] == [
        ("0.001", "no"),
        ("0.01", "yes"),
        ("0.001", "yes"),
        ("0.01", "no"),
    ]
    assert [row[2] for row in section.tables[0].rows] == ["0.01", "0.001"]
    assert [point for point in section.points if "rate of its sweep" in point] == [
        "TailorPO got the highest learning rate of its sweep; a higher one may serve it better.",
        "TailorPO, β 1 got the lowest learning rate of its sweep; a lower one may serve it better.",
    ]
    assert [point for point in section.points if "no learning rate's gain" in point] == [
        "In the sweep of TailorPO, β 1 no learning rate's gain was sure; the choice is that which risked least.",
    ]


def test_the_report_says_how_long_it_took_over_every_resumption(tmp_path: Path, monkeypatch) -> None:
    plan = plan_of(tmp_path)
    assert not any("took" in sentence for sentence in plan_section(plan, {}, []).paragraphs)
    for begin, end, so_far in ((100.0, 3700.0, "1 h 00 min"), (50.0, 110.0, "1 h 01 min")):
        clock = iter((begin, begin + 1, end))
        monkeypatch.setattr("pipeline.comparison.stopwatch.monotonic", lambda clock=clock: next(clock))
        stopwatch = Stopwatch(plan.folder)
        stopwatch.note()
        stopwatch.note()  # of which the last one counts
        assert plan_section(plan, {}, []).paragraphs[-1] == f"All of it took {so_far}, evaluation included."


def test_a_disk_that_is_full_stops_no_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    stopwatch = Stopwatch(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.comparison.stopwatch.write_json", full)
        stopwatch.note()
    assert "time.json was not written, for [Errno 28]" in caplog.text and seconds_spent(tmp_path) is None
    stopwatch.note()
    assert seconds_spent(tmp_path) is not None


def test_a_variant_that_learns_from_pairs_of_images_is_said_to(tmp_path: Path) -> None:
    offline = {
        "label": "off-line",
        "overrides": ["method={name: diffusion_dpo, data: pairs}", "learner.minibatch_size=4"],
    }
    section = plan_section(plan_of(tmp_path, variants=[{"label": "a"}, offline]), {}, [])
    assert "off-line learns from pairs of images, not from a reward." in section.paragraphs[-1]
    only = plan_section(plan_of(tmp_path), {}, [])
    assert (
        "the one with the highest lower end of the interval by which the reward that its run names had risen, over"
        in only.paragraphs[-1]
    )
    assert "learn from pairs" not in only.paragraphs[-1]


def test_a_greater_rise_that_is_less_sure_loses(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, variants=[{"label": "a"}])
    for rate, row in {0.01: reward_row(0.5, half_width=0.6), 0.001: reward_row(0.2, half_width=0.1)}.items():
        run = plan.cells[0].sweep[rate]
        write_json(run.folder / SUMMARY_FILE, {"iterations": 3, "evaluation": {"trained": row}})
    assert chosen_learning_rates(plan, read_sweep(plan)) == {"a": 0.001}


def test_of_equals_the_smaller_learning_rate_is_chosen(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, variants=[{"label": "a"}])
    finish_sweep(plan, {"a": {0.01: 0.2, 0.001: 0.2}})
    assert chosen_learning_rates(plan, read_sweep(plan)) == {"a": 0.001}


def test_a_rate_that_diverged_loses_to_every_other(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    finish_sweep(plan, {"TailorPO": {0.001: -0.3}, "TailorPO, β 1": {}})
    for run in (plan.cells[0].sweep[0.01], *plan.cells[1].sweep.values()):
        note_divergence(run.folder, "NonFiniteGradientError: 5 gradients in a row")
    results = read_sweep(plan)
    chosen = chosen_learning_rates(plan, results)
    assert chosen == {"TailorPO": 0.001}
    note_divergence(plan.runs(chosen)[0].folder, "NonFiniteScoreError: nan")
    section = plan_section(plan, chosen, results)
    assert section.points == (
        "TailorPO, β 1 has no runs: with every learning rate of the sweep it diverged.",
        "TailorPO, seed 0, diverged and is left out: NonFiniteScoreError: nan",
        "TailorPO, seed 1, is not finished and is left out.",
        "TailorPO got the lowest learning rate of its sweep; a lower one may serve it better.",
        "In the sweep of TailorPO no learning rate's gain was sure; the choice is that which risked least.",
    )
    assert [row[5] for row in section.folded[0].rows] == ["-0.3000", "diverged", "diverged", "diverged"]


def test_a_run_between_its_evaluation_and_its_summary_is_not_over(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, variants=[{"label": "a"}])
    write_json(plan.sweep_runs[0].folder / EVALUATION_FILE, {"rewards": {"trained": reward_row(1.0)}})
    assert read_sweep(plan) == [] and chosen_learning_rates(plan, []) == {}


def test_a_sweep_that_is_not_complete_chooses_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    finish_sweep(plan, {"TailorPO": {0.01: 0.2}, "TailorPO, β 1": {0.01: 0.0, 0.001: 0.1}})
    assert chosen_learning_rates(plan, read_sweep(plan)) == {"TailorPO, β 1": 0.001}


def test_without_a_sweep_every_variant_has_the_learning_rate_of_its_settings(tmp_path: Path) -> None:
    own = {"label": "own default", "overrides": ["learner.learning_rate=null", "method={name: ddpo}"]}
    plan = plan_of(tmp_path, sweep=None, variants=[{"label": "a"}, own])
    assert chosen_learning_rates(plan, []) == {"a": 1e-3, "own default": 3e-4}


def test_the_prompts_of_the_sweep_are_those_trained_on_in_a_seeded_order(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    prompts = sweep_prompts(plan, DEMO)
    assert sorted(prompts) == sorted(set(train_prompts()) - set(held_out_prompts()))
    assert prompts != [prompt for prompt in train_prompts() if prompt in set(prompts)]
    write_sweep_prompts(plan, DEMO)
    file = plan.sweep_runs[0].settings.prompts.held_out
    assert Path(file).read_text(encoding="utf-8").splitlines() == prompts


def test_prompts_of_the_final_evaluation_never_choose(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na red circle\na dog\na cat\n", encoding="utf-8")
    sweep = {"learning_rates": [0.1, 0.2], "images": 4, "prompts": str(tmp_path / "prompts.txt"), "budget_share": 0.5}
    plan = plan_of(tmp_path, sweep=sweep)
    assert sorted(sweep_prompts(plan, PromptSets(["a bird"], ["a dog"]))) == ["a cat", "a red circle"]
    with pytest.raises(ValueError, match=r"of sweep\.prompts=.*prompts\.txt are all among those of the final"):
        sweep_prompts(plan, PromptSets(["a bird"], ["a dog", "a cat", "a red circle"]))


def test_a_prompt_is_the_same_in_any_case_and_spacing(tmp_path: Path) -> None:
    """CLIP's tokenizer takes them for the same, and so would the held-out evaluation."""
    train = ["A Cat", "a dog", "a  cat", "A DOG", "STRASSE", "a bird"]
    assert sorted(sweep_prompts(plan_of(tmp_path), PromptSets(train, ["a cat", "Straße"]))) == ["a bird", "a dog"]


def test_a_sweep_without_prompts_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"that the runs train on are all among .*sweep\.prompts"):
        sweep_prompts(plan_of(tmp_path), PromptSets(list(ANIMALS), list(ANIMALS)))


def test_a_malformed_summary_is_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_json(plan.sweep_runs[0].folder / SUMMARY_FILE, {"evaluation": {"clip": {"base_mean": 1}}})
    with pytest.raises(ValueError, match=r"tailorpo-lr0\.001/summary\.json is no evaluation"):
        read_sweep(plan)
