"""Cleaning, splitting and keeping the prompts of a run."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from settings import miniature_settings

from actors.prompts import read_prompt_sets, warn_of_prompts_on_both_sides
from pipeline.prompt_sets import (
    PromptSets,
    clean_prompts,
    load_prompt_sets,
    save_prompt_sets,
    split_prompts,
)
from pipeline.prompt_settings import PromptSettings, PromptSplitSettings

MODEL = Path("nowhere")
COLUMN = {"path": "owner/name", "column": "Prompt"}


def test_prompts_are_on_one_line_each_and_there_once() -> None:
    texts = ["  a fox\n asleep ", None, "", " \t", "A Fox asleep", "cafe\u0301", "café", "a\u2028cat"]
    assert clean_prompts(texts, "it") == ["a fox asleep", "café", "a cat"]


def test_a_source_that_is_empty_after_cleaning_is_refused() -> None:
    with pytest.raises(ValueError, match="column 'x' holds no prompt: its 2 rows are missing or blank; name another"):
        clean_prompts([None, " "], "column 'x'")


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5), st.integers(0, 9))
@limits(max_examples=25, deadline=None)
def test_no_prompt_changes_sides_when_others_come(others: list[str], seed: int) -> None:
    split = PromptSplitSettings(share=0.5, seed=seed)
    prompts = [f"prompt {number}" for number in range(30)]
    alone, together = split_prompts(prompts, split), split_prompts([*others, *prompts], split)
    assert set(alone.train) <= set(together.train) and set(alone.held_out) <= set(together.held_out)
    assert sorted(alone.train + alone.held_out) == sorted(prompts)


def test_the_share_is_kept_and_the_seed_decides() -> None:
    prompts = [f"prompt {number}" for number in range(4000)]
    sides = [split_prompts(prompts, PromptSplitSettings(share=0.1, seed=seed)).held_out for seed in (0, 1)]
    # Four standard deviations of a binomial variable.
    assert all(abs(len(side) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5 for side in sides)
    assert len(set(sides[0]) & set(sides[1])) < 80


def test_case_does_not_decide_the_side() -> None:
    prompts = [f"A Fox {number}" for number in range(50)]
    split = PromptSplitSettings(share=0.5)
    lower = split_prompts([prompt.lower() for prompt in prompts], split)
    assert [prompt.lower() for prompt in split_prompts(prompts, split).train] == lower.train


def test_spellings_of_one_prompt_are_never_on_both_sides() -> None:
    spellings = [spelling for n in range(40) for spelling in (f"a caf\u00e9  {n}", f"A cafe\u0301 {n} ")]
    sets = split_prompts(spellings, PromptSplitSettings(share=0.5))
    assert sorted(sets.train + sets.held_out) == sorted(f"a caf\u00e9 {n}" for n in range(40))


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds out 0 of 1 prompts at share=0.001, .*raise prompts.split.share"):
        split_prompts(["a fox"], PromptSplitSettings(share=0.001))
    with pytest.raises(ValueError, match=r"holds out 1 of 1 prompts at share=0.999, .*lower prompts.split.share"):
        split_prompts(["a fox"], PromptSplitSettings(share=0.999))


def test_the_run_folder_states_the_prompts_and_gives_them_back(tmp_path: Path) -> None:
    assert load_prompt_sets(tmp_path) is None
    sets = PromptSets(["a fox", "一只猫"], ["a bear"])
    save_prompt_sets(sets, PromptSettings(train=COLUMN), tmp_path)
    assert load_prompt_sets(tmp_path) == sets
    stated = json.loads((tmp_path / "prompts.json").read_text())
    assert stated["train"]["source"] == "owner/name" and stated["train"]["column"] == "Prompt"
    assert (stated["train"]["prompts"], stated["held_out"]["prompts"]) == (2, 1)
    assert stated["split"] == {"share": 0.1, "seed": 0}


def test_prompts_that_were_changed_are_refused(tmp_path: Path) -> None:
    save_prompt_sets(PromptSets(["a fox"], ["a bear"]), PromptSettings(), tmp_path)
    (tmp_path / "prompts" / "train.txt").write_text("a wolf\n")
    with pytest.raises(ValueError, match=r"train\.txt is not the list of prompts that the run began with"):
        load_prompt_sets(tmp_path)


def test_held_out_prompts_are_chosen_by_the_kind_of_the_training_prompts() -> None:
    assert PromptSettings().held_out == "animals"
    assert PromptSettings(train="demo").held_out == "demo"
    assert PromptSettings(train="demo", held_out="animals").held_out == "animals"
    by_split = PromptSettings(train=COLUMN)
    assert by_split.held_out is None and by_split.split == PromptSplitSettings()
    assert PromptSettings(train=COLUMN, held_out="animals").split is None
    assert PromptSettings(train="animals", split={"share": 0.2}).held_out is None
    for settings in (PromptSettings(), by_split):
        assert PromptSettings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"train": "animals", "held_out": "demo", "split": {}}, "prompts.split takes the held-out prompts from"),
        ({"train": "demo", "split": {}, "held_out": None}, "the demo world holds prompts back by itself"),
        ({"train": {"path": "x.csv", "colum": "y"}}, "unknown setting prompts.train.colum; did you mean column"),
        ({"train": {"column": "y"}}, "setting prompts.train.path is missing"),
        ({"train": 3}, "prompts.train=3: "),
        ({"train": "animals", "held_out": None, "split": {"share": 1}}, "prompts.split.share=1: .*less than 1"),
    ],
)
def test_prompt_settings_that_cannot_work_are_refused(prompts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        miniature_settings(MODEL, prompts={"train": None, "held_out": None} | prompts)


def test_held_out_prompts_that_are_trained_on_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, lines in {
        "train.txt": "a cat\na dog\n",
        "held_out.txt": "A dog\na fox\n",
        "other.txt": "a fox\n",
    }.items():
        (tmp_path / name).write_text(lines)
    overlapping = PromptSettings(train=str(tmp_path / "train.txt"), held_out=str(tmp_path / "held_out.txt"))
    sets = read_prompt_sets(overlapping)
    assert sets.on_both_sides() == ["A dog"]
    warn_of_prompts_on_both_sides(sets, overlapping)
    assert "1 of the 2 held-out prompts are trained on too, such as 'A dog'" in caplog.text
    caplog.clear()
    for held_out in ("other.txt", "train.txt"):  # the second says itself that nothing is held out
        settings = overlapping.model_copy(update={"held_out": str(tmp_path / held_out)})
        warn_of_prompts_on_both_sides(read_prompt_sets(settings), settings)
    assert caplog.text == ""
