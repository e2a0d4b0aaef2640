"""A configuration that extends another: what is merged, what is replaced, and what goes wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from settings import miniature_values

from pipeline.config_files import read_config
from pipeline.config_loading import dump_settings, load_settings, parse_settings

MODEL = Path("some/model")
BASE = {
    "name": "base",
    "method": {"name": "tailorpo", "beta": 0.1, "trained_steps": [4, 2], "guidance": {"eta_min": 0.1, "eta_max": 0.2}},
    "reward": {"name": "clip", "path": "somewhere"},
    "evaluation": {"images": 8, "rewards": [{"name": "jpeg_compressibility"}, {"name": "clip_score"}]},
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes values, or text, to a file in the test's folder."""

    def write(name: str, values: dict[str, Any] | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


def test_sections_are_merged_key_by_key_and_lists_are_replaced(write) -> None:
    write("base.yaml", BASE)
    child = {"method": {"guidance": {"eta_max": 0.4}}, "evaluation": {"rewards": [{"name": "aesthetic"}]}}
    found = read_config(write("child.yaml", {"extends": "base.yaml", "name": "child"} | child))
    assert found["name"] == "child" and found["reward"] == BASE["reward"]
    assert found["method"] == BASE["method"] | {"guidance": {"eta_min": 0.1, "eta_max": 0.4}}
    assert found["evaluation"] == {"images": 8, "rewards": [{"name": "aesthetic"}]}


def test_a_section_of_another_kind_takes_nothing_over(write) -> None:
    write("base.yaml", BASE)
    child = {"method": {"name": "ddpo"}, "reward": {"name": "pickscore"}, "evaluation": None}
    found = read_config(write("child.yaml", {"extends": "base.yaml"} | child))
    assert found == {"name": "base"} | child
    same = {"extends": "base.yaml", "method": {"name": "tailorpo", "beta": 5.0}, "reward": [{"name": "aesthetic"}]}
    found = read_config(write("same.yaml", same))
    assert found["method"] == BASE["method"] | {"beta": 5.0} and found["reward"] == [{"name": "aesthetic"}]


def test_a_base_is_found_from_the_file_that_names_it_and_may_extend_another(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("bases/first.yaml", {"seed": 1, "iterations": 1, "name": "first"})
    write("bases/second.yaml", {"extends": "first.yaml", "iterations": 2, "name": "second"})
    path = write("run.yaml", {"extends": "bases/second.yaml", "name": "run"})
    monkeypatch.chdir(tmp_path / "bases")
    assert read_config(path) == {"seed": 1, "iterations": 2, "name": "run"}


def test_overrides_come_last_and_the_resolved_settings_have_no_trace_of_the_base(write) -> None:
    write("base.yaml", miniature_values(MODEL))
    path = write("child.yaml", {"extends": "base.yaml", "rollout": {"batch_size": 2}})
    run = load_settings(path, ["rollout.batch_size=8", "seed=3"])
    assert run == parse_settings(miniature_values(MODEL, seed=3, rollout={"batch_size": 8}))
    assert "extends" not in dump_settings(run)
    assert load_settings(write("resolved.yaml", dump_settings(run))) == run


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"run": "missing"}, r"there is no configuration file \S*missing\.yaml, which \S*run\.yaml extends"),
        ({"run": "run"}, r"run\.yaml extends \S*run\.yaml, in a circle; remove one extends"),
        ({"run": "b", "b": "c", "c": "b"}, r"run.yaml extends \S*b.yaml extends \S*c.yaml extends \S*b.yaml, in a cir"),
    ],
)
def test_a_base_that_is_missing_or_comes_round_again_is_refused(write, files: dict[str, str], message: str) -> None:
    paths = [write(f"{name}.yaml", {"extends": f"{base}.yaml"}) for name, base in files.items()]
    with pytest.raises(ValueError, match=message):
        read_config(paths[0])


@pytest.mark.parametrize("base", [None, "", 3, ["a.yaml", "b.yaml"]])
def test_what_names_no_file_is_refused(write, base: Any) -> None:
    with pytest.raises(ValueError, match=r"run.yaml has extends=.*; give one file, relative to this one"):
        read_config(write("run.yaml", {"extends": base}))


def test_a_fault_in_the_base_names_the_base(write) -> None:
    write("base.yaml", "a: [1\n")
    with pytest.raises(ValueError, match=r"base\.yaml is no valid YAML"):
        read_config(write("run.yaml", {"extends": "base.yaml"}))


def test_a_base_is_named_in_a_file_alone(write) -> None:
    with pytest.raises(ValueError, match="unknown setting extends"):
        load_settings(write("run.yaml", miniature_values(MODEL)), ["extends=other.yaml"])
