"""Actors have no names, so two runs on one cluster cannot take each other's: whoever needs one holds its handle."""

import ast
from pathlib import Path

import pytest

ACTORS = Path(__file__).resolve().parents[1] / "actors"
NAMING = {"name", "namespace", "lifetime", "get_if_exists"}


def shared_names(source: str) -> list[str]:
    """Where a module names an actor for the whole cluster, or looks for one by its name."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        words = NAMING & {word.arg for word in node.keywords}
        if words and called.endswith((".options", "ray.remote")):
            faults.append(f"{node.lineno}: {called.split('.')[-1]}({', '.join(sorted(words))})")
        if called.endswith("get_actor"):
            faults.append(f"{node.lineno}: {called}")
    return faults


@pytest.mark.parametrize("path", sorted(ACTORS.glob("*.py")), ids=lambda path: path.stem)
def test_no_actor_is_known_by_a_name(path: Path) -> None:
    assert shared_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("Store.options(name='store').remote()", "1: options(name)"),
        ("ray.remote(lifetime='detached')(Store)", "1: remote(lifetime)"),
        ("ray.get_actor('store')", "1: ray.get_actor"),
    ],
)
def test_a_name_is_seen(source: str, fault: str) -> None:
    assert shared_names(source) == [fault]
