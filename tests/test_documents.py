"""Documents say what the code and the committed results say."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from actors.capacity import fits
from actors.crew import worker_requests
from jobs.make_docs import PAGES
from pipeline.config_loading import load_settings, parse_settings

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RUNS = sorted((REPOSITORY / "results").glob("*/evaluation.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_that_comes_from_the_code_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path](), "run `make docs`"


def test_the_walk_through_the_code_passes_every_module() -> None:
    walk = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = [path for floor in ("pipeline", "actors", "jobs") for path in (REPOSITORY / floor).glob("[!_]*")]
    names = {f"`{path.name}/`" if path.is_dir() else f"`{path.name}`" for path in modules}
    assert {name for name in names if name not in walk} == set()


def test_the_readmes_run_on_gpus_fits_on_one() -> None:
    (command,) = (line for line in README.splitlines() if "name=demo-gpu" in line)
    config, *overrides = shlex.split(command.partition("--config ")[2])
    settings = load_settings(REPOSITORY / config, overrides)
    assert all(role.num_gpus > 0 for role in (settings.rollout, settings.reward_actors, settings.learner))
    assert fits(worker_requests(settings), [{"CPU": 8.0, "GPU": 1.0}])


@pytest.mark.parametrize("table", RUNS, ids=lambda path: path.parent.name)
def test_the_readme_shows_every_committed_evaluation_as_it_was_written(table: Path) -> None:
    rewards, *_ = table.read_text(encoding="utf-8").strip().split("\n\n")
    assert rewards in README


@pytest.mark.parametrize("table", RUNS, ids=lambda path: path.parent.name)
def test_a_committed_result_is_whole_and_of_the_settings_beside_it(table: Path) -> None:
    folder = table.parent
    settings = parse_settings(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert [row["iteration"] for row in metrics] == list(range(settings.iterations))
    assert summary["last_iteration"] == metrics[-1]
    assert all(row["pairs"] == settings.evaluation.images for row in summary["evaluation"].values())


def test_the_parity_page_says_what_was_measured() -> None:
    page = (REPOSITORY / "benchmarks" / "parity" / "README.md").read_text(encoding="utf-8")
    result = json.loads((REPOSITORY / "results" / "parity" / "hpsv2.json").read_text(encoding="utf-8"))
    assert len(result["cases"]) == 4
    for case in result["cases"].values():
        size = "x".join(map(str, case["image_height_width"]))
        assert re.search(rf"^\| {size}.* \| {case['largest_difference']:.1e} \|$", page, re.MULTILINE)
    assert f"agrees to {result['gradient_relative_difference']:.1e} of its" in page
    assert f"open_clip {result['reference']['open_clip']}" in page


@pytest.mark.parametrize("name", ["demo", "demo_compressibility", "demo_diffusion_dpo"])
def test_the_results_of_a_shipped_configuration_are_of_that_configuration(name: str) -> None:
    shipped = load_settings(REPOSITORY / "configs" / f"{name}.yaml")
    recorded = (REPOSITORY / "results" / shipped.name / "config.yaml").read_text(encoding="utf-8")
    assert parse_settings(yaml.safe_load(recorded)) == shipped


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((REPOSITORY / "configs").glob("*.yaml")) if not path.stem.startswith("compare_")],
    ids=lambda path: path.stem,
)
def test_every_shipped_configuration_is_on_the_page_about_recipes(path: Path) -> None:
    settings = load_settings(path)
    held_out = " and ".join(f"`{reward.name}`" for reward in settings.evaluation.rewards)
    row = f"| `{path.name}` | {settings.method.title} | `{settings.reward_title}` | {held_out} |"
    assert row in (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
