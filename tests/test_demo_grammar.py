"""The demo world's language: text and back, canonical forms, and the split of alignment and held-out prompts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.grammar import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    ObjectSpec,
    Scene,
    held_out_prompts,
    is_held_out,
    parse_prompt,
    prompts,
    scene_from_attributes,
    train_prompts,
)

objects = st.builds(ObjectSpec, st.sampled_from(COLOURS), st.sampled_from(SHAPES), st.none() | st.sampled_from(SIZES))
backgrounds = st.none() | st.sampled_from(BACKGROUNDS)
singles = st.builds(lambda one, background: Scene((one,), None, background), objects, backgrounds)
pairs = st.builds(
    lambda one, two, relation, background: Scene((one, two), relation, background),
    objects,
    objects,
    st.sampled_from(RELATIONS),
    backgrounds,
)
scenes = singles | pairs


@given(scenes)
def test_a_prompt_reads_back_as_its_scene(scene: Scene) -> None:
    assert parse_prompt(scene.prompt()) == scene


@given(scenes)
def test_attributes_hold_the_canonical_scene(scene: Scene) -> None:
    assert scene_from_attributes(scene.attributes()) == scene.canonical()


@given(scenes)
def test_a_scene_and_its_reverse_mean_the_same(scene: Scene) -> None:
    assert scene.reversed().attributes() == scene.attributes()
    assert scene.reversed().reversed() == scene
    assert is_held_out(scene.reversed()) == is_held_out(scene)


def test_example_prompts() -> None:
    scene = parse_prompt("a small blue star left of a green ring")
    assert scene == Scene((ObjectSpec("blue", "star", "small"), ObjectSpec("green", "ring")), "left of")
    assert parse_prompt("  A large RED circle on a white background. ").background == "white"
    assert Scene((ObjectSpec("orange", "cross"),)).prompt() == "an orange cross"


@pytest.mark.parametrize(
    "text",
    ["", "a circle", "a red circle left of", "two red circles", "a red circle near a blue star", "🐱", "红色的圆"],
)
def test_what_is_no_prompt_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="not a prompt of the demo world") as caught:
        parse_prompt(text)
    assert repr(text) in str(caught.value)


def test_split_is_deterministic_disjoint_and_mixed() -> None:
    train, held_out = train_prompts(), held_out_prompts()
    assert (train, held_out) == (train_prompts(), held_out_prompts())
    assert len(set(train)) == len(train) == 384 and len(set(held_out)) == len(held_out) == 384
    assert not any(is_held_out(parse_prompt(prompt)) for prompt in train)
    assert all(is_held_out(parse_prompt(prompt)) for prompt in held_out)
    for some in (train, held_out):
        single = sum(parse_prompt(prompt).relation is None for prompt in some)
        assert single == 128


def test_a_combination_stays_on_its_side_whatever_sizes_and_background_say() -> None:
    scene = parse_prompt(held_out_prompts(1)[0])
    for size, background in itertools.product(SIZES, BACKGROUNDS):
        first = ObjectSpec(scene.objects[0].colour, scene.objects[0].shape, size)
        assert is_held_out(Scene((first, *scene.objects[1:]), scene.relation, background))


def test_the_pool_behind_the_lists_goes_on() -> None:
    stream = prompts(held_out=False, seed=3)
    assert len(set(itertools.islice(stream, 3000))) > 2000
