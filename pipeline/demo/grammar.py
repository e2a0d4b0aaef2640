"""The demo world's language: what a prompt may state, its text, and the reading of that text.

A scene holds one object, or two related by *left of*, *right of*, *above* or *below*. Every object has a colour and a
shape; sizes and the background may stay unstated. Scenes have a canonical form (left or upper object first), in
which "A right of B" and "B left of A" are the same scene.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
BACKGROUNDS = ("white", "black", "gray", "pink")
RELATIONS = ("left of", "right of", "above", "below")
LAYOUTS = ("single", "horizontal", "vertical")

ATTRIBUTES = ("layout", "background", "size_0", "colour_0", "shape_0", "size_1", "colour_1", "shape_1")
ATTRIBUTE_VALUES = (LAYOUTS, BACKGROUNDS, SIZES, COLOURS, SHAPES, SIZES, COLOURS, SHAPES)
UNSTATED = -1

_CANONICAL_RELATION = {"left of": "left of", "right of": "left of", "above": "above", "below": "above"}
_LAYOUT_OF_RELATION = {None: "single", "left of": "horizontal", "above": "vertical"}
_REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class ObjectSpec:
    """One object as a prompt states it; ``size`` is None where the prompt leaves it open."""

    colour: str
    shape: str
    size: str | None = None

    def text(self) -> str:
        """The noun phrase, e.g. "a small red circle"."""
        words = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    """What a prompt states: one or two objects, the relation of the first to the second, and the background."""

    objects: tuple[ObjectSpec, ...]
    relation: str | None = None
    background: str | None = None

    def prompt(self) -> str:
        """The prompt of this scene; ``parse_prompt`` reads it back."""
        text = self.objects[0].text()
        if self.relation is not None:
            text += f" {self.relation} {self.objects[1].text()}"
        if self.background is not None:
            text += f" on a {self.background} background"
        return text

    def reversed(self) -> "Scene":
        """The same scene told from its second object; a single object is its own reverse."""
        if self.relation is None:
            return self
        return replace(self, objects=self.objects[::-1], relation=_REVERSED[self.relation])

    def canonical(self) -> "Scene":
        """The same scene with the left or upper object first."""
        if self.relation is None or self.relation == _CANONICAL_RELATION[self.relation]:
            return self
        return self.reversed()

    def attributes(self) -> tuple[int, ...]:
        """Indices into ``ATTRIBUTE_VALUES`` in the order of ``ATTRIBUTES``, canonical; ``UNSTATED`` where open."""
        scene = self.canonical()
        values: list[str | None] = [_LAYOUT_OF_RELATION[scene.relation], scene.background]
        for spec in scene.objects:
            values += [spec.size, spec.colour, spec.shape]
        values += [None] * (len(ATTRIBUTES) - len(values))
        return tuple(
            UNSTATED if value is None else names.index(value)
            for value, names in zip(values, ATTRIBUTE_VALUES, strict=True)
        )


def scene_from_attributes(attributes: Sequence[int]) -> Scene:
    """The canonical scene of an attribute row (see ``Scene.attributes``)."""
    layout, background, *rest = (
        None if value == UNSTATED else names[value] for value, names in zip(attributes, ATTRIBUTE_VALUES, strict=True)
    )
    objects = tuple(
        ObjectSpec(colour=colour, shape=shape, size=size)
        for size, colour, shape in (rest[:3], rest[3:])
        if colour is not None and shape is not None
    )
    relation = {"single": None, "horizontal": "left of", "vertical": "above"}[str(layout)]
    return Scene(objects, relation, background)


def _one_of(words: Sequence[str]) -> str:
    return "(" + "|".join(words) + ")"


_OBJECT = rf"an? (?:{_one_of(SIZES)} )?{_one_of(COLOURS)} {_one_of(SHAPES)}"
_PROMPT = re.compile(rf"{_OBJECT}(?: {_one_of(RELATIONS)} {_OBJECT})?(?: on an? {_one_of(BACKGROUNDS)} background)?")


def parse_prompt(prompt: str) -> Scene:
    """Read a prompt of the demo world.

    Raises:
        ValueError: the text is no prompt of this world; the message names it and shows a valid one.
    """
    match = _PROMPT.fullmatch(" ".join(prompt.lower().split()).removesuffix("."))
    if match is None:
        raise ValueError(
            f"not a prompt of the demo world: {prompt!r}. Valid is, for example, "
            "'a small blue star left of a green ring on a gray background'; "
            f"colours are {', '.join(COLOURS)}; shapes are {', '.join(SHAPES)}."
        )
    size, colour, shape, relation, size_1, colour_1, shape_1, background = match.groups()
    objects = [ObjectSpec(colour, shape, size)]
    if relation is not None:
        objects.append(ObjectSpec(colour_1, shape_1, size_1))
    return Scene(tuple(objects), relation, background)


SINGLE_SHARE = 1 / 3
_SIZE_STATED = 0.7
_BACKGROUND_STATED = 0.5
_HELD_OUT_SHARE = 0.25
_SPLIT_SEED = "demo-world-split-5"


def random_scene(rng: random.Random) -> Scene:
    """A scene as prompts state it: sizes and the background stated at random, two objects never alike."""

    def random_object() -> ObjectSpec:
        size = rng.choice(SIZES) if rng.random() < _SIZE_STATED else None
        return ObjectSpec(rng.choice(COLOURS), rng.choice(SHAPES), size)

    background = rng.choice(BACKGROUNDS) if rng.random() < _BACKGROUND_STATED else None
    first = random_object()
    if rng.random() < SINGLE_SHARE:
        return Scene((first,), None, background)
    second = random_object()
    while (second.colour, second.shape) == (first.colour, first.shape):
        second = random_object()
    return Scene((first, second), rng.choice(RELATIONS), background)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination of colours, shapes and relation is kept away from alignment.

    The split is a seeded hash of the canonical combination, so no rewording, size or background moves a scene
    from one side to the other.
    """
    canonical = scene.canonical()
    combination = [str(canonical.relation)] + [f"{spec.colour} {spec.shape}" for spec in canonical.objects]
    digest = hashlib.sha256("|".join([_SPLIT_SEED, *combination]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < _HELD_OUT_SHARE


def prompts(held_out: bool, seed: int) -> Iterator[str]:
    """An endless stream of prompts of one side of the split, deterministic in ``seed``."""
    rng = random.Random(f"{seed}/{'held out' if held_out else 'train'}")
    while True:
        scene = random_scene(rng)
        if is_held_out(scene) == held_out:
            yield scene.prompt()


def _single_prompts(held_out: bool) -> list[str]:
    """Every prompt of one object on one side of the split, in a fixed order."""
    scenes = (
        Scene((ObjectSpec(colour, shape, size),), None, background)
        for colour, shape, size, background in itertools.product(COLOURS, SHAPES, (None, *SIZES), (None, *BACKGROUNDS))
    )
    return [scene.prompt() for scene in scenes if is_held_out(scene) == held_out]


def _distinct_prompts(held_out: bool, count: int, seed: int) -> list[str]:
    """One third single objects, as far as there are so many, and pairs; in random order."""
    rng = random.Random(f"{seed}/{'held out' if held_out else 'train'}/singles")
    singles = _single_prompts(held_out)
    chosen = dict.fromkeys(rng.sample(singles, min(round(count * SINGLE_SHARE), len(singles))))
    for prompt in prompts(held_out, seed):
        if len(chosen) == count:
            break
        if parse_prompt(prompt).relation is not None:
            chosen.setdefault(prompt)
    mixed = list(chosen)
    rng.shuffle(mixed)
    return mixed


def train_prompts(count: int = 384, seed: int = 0) -> list[str]:
    """``count`` distinct prompts for alignment, one third of them single objects; deterministic."""
    return _distinct_prompts(False, count, seed)


def held_out_prompts(count: int = 384, seed: int = 0) -> list[str]:
    """``count`` distinct prompts whose combinations alignment never sees; mixed as ``train_prompts``."""
    return _distinct_prompts(True, count, seed)
