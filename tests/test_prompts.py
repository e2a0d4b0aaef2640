"""Prompt sets, and the plan of which prompt and which samples a batch holds."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts import ANIMALS, load_held_out_prompts, load_train_prompts, plan_batch


def test_the_animals_are_ddpos_forty_five() -> None:
    assert len(ANIMALS) == len(set(ANIMALS)) == 45
    assert (ANIMALS[0], ANIMALS[-1]) == ("cat", "kangaroo")
    assert load_train_prompts("animals") == load_held_out_prompts("animals") == list(ANIMALS)


def test_the_demo_world_holds_prompts_back() -> None:
    train, held_out = load_train_prompts("demo"), load_held_out_prompts("demo")
    assert train
    assert held_out
    assert set(train).isdisjoint(held_out)


def test_a_file_gives_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("  a fox \n\n🦊 in the snow\r\nقطة حمراء\n一只猫\n\n", encoding="utf-8")
    assert load_train_prompts(str(path)) == ["a fox", "🦊 in the snow", "قطة حمراء", "一只猫"]
    assert load_held_out_prompts(str(path)) == load_train_prompts(str(path))


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a fox\n", encoding="utf-8-sig")
    assert load_train_prompts(str(path)) == ["a fox"]


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"prompts.txt is empty; write one prompt a line"):
        load_train_prompts(str(path))


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("ein Fuchs über dem Zaun".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts.txt is not UTF-8 text; save it as UTF-8"):
        load_train_prompts(str(path))


@pytest.mark.parametrize("load", [load_train_prompts, load_held_out_prompts])
def test_a_missing_file_is_refused(load: object, tmp_path: Path) -> None:
    assert callable(load)
    with pytest.raises(ValueError, match=r"there is no prompt file .*animal.*animals, or demo"):
        load(str(tmp_path / "animal"))


@given(
    count=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    batches=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    passes=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_every_prompt_is_drawn_equally_often(count: int, batch_size: int, batches: int, seed: int, passes: int) -> None:
    prompts = [f"prompt {number}" for number in range(count)]
    drawn: list[str] = []
    iteration = 0
    while len(drawn) < passes * count:
        for number in range(batches):
            batch = plan_batch(prompts, seed, iteration, number, batch_size, batches)
            assert batch.iteration == iteration
            assert batch.samples == tuple(range(number * batch_size, (number + 1) * batch_size))
            assert batch == plan_batch(prompts, seed, iteration, number, batch_size, batches)
            drawn += batch.prompts
        iteration += 1
    for start in range(0, passes * count, count):
        assert Counter(drawn[start : start + count]) == Counter(prompts)


def test_the_order_changes_with_the_pass_and_the_seed() -> None:
    prompts = [f"prompt {number}" for number in range(30)]
    orders = {plan_batch(prompts, seed, iteration, 0, 30, 1).prompts for seed in (0, 1) for iteration in range(3)}
    assert len(orders) == 6
