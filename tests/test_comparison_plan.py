"""The plan of a comparison: which runs, in which order, and everything that can be wrong with its file."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from comparisons import make_comparison, plan_of

from pipeline.comparison.loading import check_folders, is_finished, load_begun, load_comparison, open_folder
from pipeline.comparison.overview import overview
from pipeline.comparison.plan import make_plan
from pipeline.comparison.settings import ComparisonSettings
from pipeline.config_loading import dump_settings, parse_as, sections_of
from pipeline.run_folder import CONFIG_FILE, SUMMARY_FILE, write_text

REPOSITORY = Path(__file__).parents[1]

TWO_REWARDS = [
    {"label": "JPEG"},
    {"label": "CLIP", "overrides": ["reward={name: clip, path: some/clip}", "method.beta=3"]},
]
RUNNING = [
    "reward=[{name: jpeg_compressibility}, {name: clip, path: some/clip}]",
    "reward_normalisation=running",
]
GUIDED = {"label": "TailorPO-G", "overrides": ["method.guidance={}"], "not_with": ["JPEG"]}


def test_the_runs_are_every_variant_with_every_reward_and_seed_and_seeds_are_outermost(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, rewards=TWO_REWARDS, variants=[{"label": "TailorPO"}, GUIDED])
    assert [cell.label for cell in plan.cells] == ["TailorPO (JPEG)", "TailorPO (CLIP)", "TailorPO-G (CLIP)"]
    assert plan.left_out == (("TailorPO-G", "JPEG"),)
    runs = plan.runs({cell.label: 0.01 for cell in plan.cells})
    assert [run.settings.name for run in runs] == [
        f"{name}-seed{seed}" for seed in (0, 1) for name in ("jpeg-tailorpo", "clip-tailorpo", "clip-tailorpo-g")
    ]
    assert {run.settings.learning_rate for run in runs} == {0.01}
    assert all(run.folder == Path(run.settings.output_dir) / run.settings.name for run in runs)
    assert [run.settings.seed for run in runs] == [0, 0, 0, 1, 1, 1]


def test_what_differs_is_applied_of_all_runs_then_of_the_reward_then_of_the_variant(tmp_path: Path) -> None:
    strong = {"label": "strong", "overrides": ["method.beta=9"]}
    variants = [{"label": "TailorPO"}, strong]
    plan = plan_of(tmp_path, rewards=TWO_REWARDS, variants=variants, overrides=["method.beta=2", "iterations=1"])
    assert [cell.settings.method.beta for cell in plan.cells] == [2, 9, 3, 9]
    assert [cell.settings.reward_title for cell in plan.cells] == ["jpeg_compressibility"] * 2 + ["clip"] * 2


def test_a_variant_may_have_settings_with_one_reward_alone(tmp_path: Path) -> None:
    strong = {"label": "TailorPO", "overrides": ["method.beta=9"], "overrides_with": {"CLIP": ["method.beta=10"]}}
    plan = plan_of(tmp_path, rewards=TWO_REWARDS, variants=[strong])
    assert [cell.settings.method.beta for cell in plan.cells] == [9, 10]


def test_a_cell_without_a_learning_rate_has_no_runs(tmp_path: Path) -> None:
    runs = plan_of(tmp_path).runs({"TailorPO": 0.01})
    assert {run.cell for run in runs} == {"TailorPO"}


def test_the_sweep_is_short_has_a_seed_of_its_own_and_is_judged_by_the_trained_reward(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    runs = plan.sweep_runs
    assert [run.settings.name for run in runs] == [
        "tailorpo-lr0.001",
        "tailorpo-lr0.01",
        "tailorpo-1-lr0.001",
        "tailorpo-1-lr0.01",
    ]
    for run in runs:
        settings = run.settings
        assert (settings.iterations, settings.seed, settings.evaluation.images) == (1, 1000, 4)
        assert settings.evaluation.rewards == () and settings.learning_rate == run.settings.learner.learning_rate
        assert settings.prompts.held_out == str(tmp_path / "comparison" / "sweep" / "prompts.txt")
        assert settings.prompts.train == str(tmp_path / "comparison" / "prompts" / "train.txt")
    (final, *_) = plan.runs({"TailorPO": 0.01})
    settings = final.settings
    assert (settings.iterations, settings.evaluation.images, settings.prompts.held_out) == (3, 0, "demo")


def test_the_larger_phase_says_how_many_runs_may_go_on_at_once(tmp_path: Path) -> None:
    assert plan_of(tmp_path, seeds=[0]).most_runs_of_a_phase == 4
    assert plan_of(tmp_path, seeds=[0, 1, 2]).most_runs_of_a_phase == 6
    assert plan_of(tmp_path, seeds=[0], sweep=None).most_runs_of_a_phase == 2


def test_a_variant_with_one_learning_rate_has_it_without_a_sweep(tmp_path: Path) -> None:
    fixed = {"label": "fixed", "learning_rates": [0.5]}
    plan = plan_of(tmp_path, variants=[{"label": "TailorPO"}, fixed])
    assert [run.cell for run in plan.sweep_runs] == ["TailorPO"] * 2
    assert plan.cells[1].settings.learning_rate == 0.5


def test_without_a_choice_of_learning_rates_rewards_may_be_in_units_of_each_run(tmp_path: Path) -> None:
    fixed = [{"label": "fixed", "learning_rates": [0.5]}]
    assert plan_of(tmp_path, overrides=RUNNING, variants=fixed).sweep_runs == []


def test_the_overview_says_what_is_run_and_what_is_left_out(tmp_path: Path) -> None:
    text = overview(plan_of(tmp_path, rewards=TWO_REWARDS, variants=[{"label": "TailorPO"}, GUIDED]))
    rows = [line.split("  ") for line in text.splitlines()]
    (guided,) = ([cell.strip() for cell in row if cell] for row in rows if row[0] == "TailorPO-G (CLIP)")
    assert guided == ["TailorPO-G (CLIP)", "TailorPO-G", "0.001 and 0.01", "2", "16", "224"]
    assert "Every run makes as many whole iterations as 240 network calls buy." in text
    assert "TailorPO-G was not run with the reward JPEG" in text
    assert "6 runs, of seed 0 and 1 for each variant, after 6 short ones" in text


def test_the_folder_holds_all_that_the_comparison_was_described_by(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    open_folder(plan)
    (tmp_path / "base.yaml").unlink()
    again = make_plan(load_comparison(plan.folder / "comparison.yaml"), plan.folder)
    assert again.cells == plan.cells


def test_a_run_is_finished_when_its_summary_is_there_and_is_not_begun_anew_with_other_settings(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    (run, *others) = plan.runs({"TailorPO": 0.01})
    assert not is_finished(run)
    check_folders([run, *others])
    write_text(run.folder / CONFIG_FILE, dump_settings(run.settings))
    check_folders([run])
    write_text(run.folder / SUMMARY_FILE, "{}")
    assert is_finished(run)
    (changed, *_) = plan.runs({"TailorPO": 0.02})
    with pytest.raises(ValueError, match="tailorpo-seed0 was begun with other settings"):
        check_folders([changed])


def test_a_folder_that_was_moved_is_resumed_where_it_lies(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    open_folder(plan)
    run, short = plan.runs({"TailorPO": 0.01})[0], plan.sweep_runs[0]
    for begun in (run, short):
        write_text(begun.folder / CONFIG_FILE, dump_settings(begun.settings))
    plan.folder.rename(tmp_path / "moved")
    (tmp_path / "base.yaml").unlink()
    again = make_plan(load_begun(tmp_path / "moved"), tmp_path / "moved")
    run, short = again.runs({"TailorPO": 0.01})[0], again.sweep_runs[0]
    assert run.folder.is_relative_to(tmp_path / "moved")
    check_folders([run, short])
    with pytest.raises(ValueError, match="was begun with other settings"):
        check_folders(again.runs({"TailorPO": 0.02}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"budgett": {}}, "unknown setting budgett; did you mean budget"),
        ({"variants": [{"label": "a", "override": []}]}, "unknown setting variants.0.override; did you mean overrides"),
        ({"budget": {"unit": "hours", "amount": 1}}, "budget.unit='hours'"),
        ({"budget": {"unit": "seconds", "amount": 0}}, "budget.amount=0"),
        ({"variants": []}, "variants"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 1, 0]}, "seeds lists 0 twice"),
        ({"seeds": [1000]}, "sweep.seed=1000 is one of seeds"),
        ({"sweep": {"learning_rates": [1e-3, 0.001]}}, "sweep.learning_rates lists 0.001 twice"),
        ({"sweep": {"learning_rates": []}}, "sweep.learning_rates"),
        ({"sweep": {"learning_rates": [1e-3], "budget_share": 1.5}}, "sweep.budget_share=1.5"),
        ({"variants": [{"label": "+"}]}, "label '\\+', which makes no folder name"),
        ({"variants": [{"label": "a b"}, {"label": "A-B"}]}, "two labels that make the folder name 'a-b'"),
        ({"rewards": [{"label": "a"}, {"label": "a!"}]}, "rewards has two labels"),
        (
            {"variants": [{"label": "a", "not_with": ["b"]}]},
            "not_with 'b', which is no label under rewards; .* none",
        ),
        (
            {"rewards": [{"label": "b"}], "variants": [{"label": "a", "overrides_with": {"c": []}}]},
            "variant 'a' has overrides_with 'c', which is no label under rewards; known are b",
        ),
        (
            {
                "rewards": [{"label": "b"}, {"label": "c"}],
                "variants": [{"label": "a", "not_with": ["b"], "overrides_with": {"b": []}}],
            },
            "variant 'a' has 'b' under not_with and overrides_with; drop one",
        ),
        (
            {"rewards": [{"label": "b"}], "variants": [{"label": "a", "not_with": ["b"]}]},
            "variant 'a' is not_with every reward",
        ),
        (
            {"sweep": None, "variants": [{"label": "a", "learning_rates": [0.1, 0.2]}]},
            "lists 2 learning_rates and there is no sweep",
        ),
        ({"parallel": 0}, "parallel=0"),
    ],
)
def test_a_faulty_file_is_refused_with_what_to_change(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_comparison(tmp_path, **sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"base": "nowhere.yaml"}, "variant 'TailorPO': there is no configuration file nowhere.yaml"),
        ({"overrides": ["iterations"]}, "override 'iterations' is not of the form"),
        ({"variants": [{"label": "a", "overrides": ["method.betta=1"]}]}, "variant 'a': unknown setting method.betta"),
        ({"variants": [{"label": "a", "overrides": ["method={name: ppo}"]}]}, "method.name='ppo' is unknown"),
        ({"variants": [{"label": "a"}, {"label": "b"}]}, "'a' and 'b' have the same settings"),
        (
            {"variants": [{"label": "a", "learning_rates": [0.0001234567, 0.0001234568]}]},
            r"'a' \(learning rate 0\.0001234567, .* and 'a' \(learning rate 0\.0001234568, .*/sweep/a-lr0\.000123457; ",
        ),
        ({"overrides": RUNNING}, "variant 'TailorPO': reward_normalisation=running gives each run units .*=scale, or"),
        ({"budget": {"unit": "trajectories", "amount": 7}}, "buy no iteration of 'tailorpo'"),
        ({"budget": {"unit": "trajectories", "amount": 15}}, "7.5 trajectories buy no iteration .*budget_share"),
    ],
)
def test_runs_that_cannot_be_are_refused_with_their_variant(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(tmp_path, **sections)


@pytest.mark.parametrize("sweep", [None, {"learning_rates": [0.01, 0.001], "budget_share": 0.5, "images": 4}])
def test_labels_that_make_one_folder_together_are_refused(tmp_path: Path, sweep: dict[str, Any] | None) -> None:
    rewards = [{"label": "JPEG G"}, {"label": "JPEG", "overrides": ["method.beta=3"]}]
    variants = [{"label": "CLIP"}, {"label": "G CLIP", "overrides": ["sampling.eta=0.5"]}]
    with pytest.raises(ValueError, match=r"'CLIP \(JPEG G\)' .* and 'G CLIP \(JPEG\)' .*/jpeg-g-clip-"):
        plan_of(tmp_path, rewards=rewards, variants=variants, sweep=sweep)


def test_every_setting_has_its_sentence() -> None:
    def sentences(section: type[Any]) -> None:
        for name, field in section.model_fields.items():
            nested = sections_of(field.annotation)
            assert nested or field.description, f"{section.__name__}.{name}"
            for kind in nested:
                sentences(kind)

    sentences(ComparisonSettings)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("compare_*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_comparison_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    plan = make_plan(load_comparison(path), path.parent)
    assert load_comparison(path) == parse_as(ComparisonSettings, yaml.safe_load(dump_settings(plan.comparison)))
