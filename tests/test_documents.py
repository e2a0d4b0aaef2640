"""Documents say what the code and the committed results say."""

import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from actors.capacity import fits
from actors.crew import worker_requests
from jobs.make_docs import PAGES
from pipeline.config_loading import load_settings, parse_settings

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("docs", "results", "benchmarks", "models")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RESULTS = (REPOSITORY / "results" / "README.md").read_text(encoding="utf-8")
PAGES_WITH_LINKS = sorted(
    path
    for path in (*REPOSITORY.glob("*.md"), *(page for name in FOLDERS for page in (REPOSITORY / name).rglob("*.md")))
)
RUNS = sorted((REPOSITORY / "results").glob("*/evaluation.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_that_comes_from_the_code_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path](), "run `make docs`"


def test_the_walk_through_the_code_passes_every_module() -> None:
    walk = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = [path for floor in ("pipeline", "actors", "jobs") for path in (REPOSITORY / floor).glob("[!_]*")]
    names = {f"`{path.name}/`" if path.is_dir() else f"`{path.name}`" for path in modules}
    assert {name for name in names if name not in walk} == set()


def test_no_long_paragraph_comes_twice() -> None:
    """As when a page is written into itself."""
    for path in PAGES_WITH_LINKS:
        texts = path.read_text(encoding="utf-8").split("\n\n")
        paragraphs = [text for text in texts if len(text) > 200 and not text.startswith("|")]
        assert len(paragraphs) == len(set(paragraphs)), path


def test_the_readmes_run_on_gpus_fits_on_one() -> None:
    (command,) = (line for line in README.splitlines() if "name=demo-gpu" in line)
    config, *overrides = shlex.split(command.partition("--config ")[2])
    settings = load_settings(REPOSITORY / config, overrides)
    assert all(role.num_gpus > 0 for role in (settings.rollout, settings.reward_actors, settings.learner))
    assert fits(worker_requests(settings), [{"CPU": 8.0, "GPU": 1.0}])


@pytest.mark.parametrize("table", RUNS, ids=lambda path: path.parent.name)
def test_the_page_about_results_shows_every_committed_evaluation_as_it_was_written(table: Path) -> None:
    rewards, *_ = table.read_text(encoding="utf-8").strip().split("\n\n")
    assert rewards in RESULTS
    # The README shows that of `make align`, whole, and no other.
    assert (rewards in README) == (table.parent.name == "demo")


def test_the_page_about_results_says_how_everything_beside_it_was_made() -> None:
    made = set(re.findall(r"^\| .*? \| .*`.*` .*\|", RESULTS.partition("Words of the tables")[0], re.MULTILINE))
    named = {name.rstrip("/") for row in made for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    found = {path.name for path in (REPOSITORY / "results").iterdir()} - {"README.md"}
    assert named == found


COLUMNS_OF_COMPARISONS = {
    "CLIP": ("CLIP", "clip"),
    "compressibility": ("compressibility", "jpeg_compressibility"),
    "judge": ("CLIP", "scene_judge"),
    "judge, trained on CLIP": ("CLIP", "scene_judge"),
    "judge, trained on compressibility": ("compressibility", "scene_judge"),
}
"""What the methods of a column were trained on, and which measure it shows."""


@pytest.mark.parametrize("folder", ["comparison", "comparison-clip"])
def test_the_table_of_a_comparison_shows_what_its_report_found(folder: str) -> None:
    rows = pq.read_table(REPOSITORY / "results" / folder / "report_held_out.parquet").to_pylist()
    found = {(row["method"], row["measure"]): row for row in rows if row["seed"] is None and row["kind"] == "reward"}
    lines = RESULTS.partition(f"({folder}/report.html)")[2].partition("| method |")[2].split("\n\n")[0].splitlines()
    columns = [title.strip() for title in lines[0].strip(" |").split("|")]
    shown = 0
    for line in lines[2:]:
        method, *cells = (cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|"))
        for title, cell in zip(columns, cells, strict=True):
            trained_on, measure = COLUMNS_OF_COMPARISONS[title]
            row = found.get((f"{method} ({trained_on})", measure)) or found.get((method, measure))
            numbers = re.findall(r"[+-]\d+\.\d+", cell)
            assert bool(numbers) == (row is not None), f"{method}, {title}: {cell}"
            if row is not None:
                values = [f"{row[name]:+.3f}" for name in ("difference", "low", "high")]
                assert numbers == values[: len(numbers)], f"{method}, {title}"
                shown += 1
    assert shown >= 10


def test_the_table_over_seeds_shows_what_its_report_found() -> None:
    rows = pq.read_table(REPOSITORY / "results" / "demo-seeds" / "report_held_out.parquet").to_pylist()
    lines = RESULTS.partition("(demo-seeds/report.html)")[2].partition("| method |")[2].split("\n\n")[0].splitlines()
    shown = {method.strip(): [cell.strip() for cell in cells] for _, method, *cells, _ in map(split_row, lines[2:])}
    for method, cells in shown.items():
        for measure, (over_seeds, by_seed) in zip(("clip", "scene_judge"), (cells[:2], cells[2:]), strict=True):
            mine = [row for row in rows if (row["method"], row["measure"]) == (method, measure)]
            total, *runs = sorted(mine, key=lambda row: -1 if row["seed"] is None else row["seed"])
            assert over_seeds == "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**total)
            assert by_seed == ", ".join(f"{run['difference']:+.3f}" for run in runs)
    assert set(shown) == {"TailorPO-G", "TailorPO"}
    found = {row["measure"]: row for row in rows if row["method"] == "TailorPO-G" and row["seed"] is None}
    for measure, name in (("clip", "CLIP rises by"), ("scene_judge", "the judge by")):
        assert name + " {difference:.3f} [{low:.3f}, {high:.3f}]".format(**found[measure]) in README


def split_row(line: str) -> list[str]:
    return line.split("|")


@pytest.mark.parametrize("page", PAGES_WITH_LINKS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} of {page}"
        if anchor:
            assert anchor in anchors(target), f"{link} of {page}"


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("table", RUNS, ids=lambda path: path.parent.name)
def test_a_committed_result_is_whole_and_of_the_settings_beside_it(table: Path) -> None:
    folder = table.parent
    settings = parse_settings(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert [row["iteration"] for row in metrics] == list(range(settings.iterations))
    assert summary["last_iteration"] == metrics[-1]
    assert all(row["pairs"] == settings.evaluation.images for row in summary["evaluation"].values())


def test_the_parity_page_says_what_was_measured_of_image_reward() -> None:
    page = (REPOSITORY / "benchmarks" / "parity" / "README.md").read_text(encoding="utf-8")
    result = json.loads((REPOSITORY / "results" / "parity" / "image_reward.json").read_text(encoding="utf-8"))
    small, published = (result[case] for case in ("small", "published_size"))
    assert small["pictures"].keys() == published["pictures"].keys() and len(small["pictures"]) == 3
    for name, picture in small["pictures"].items():
        size = "x".join(map(str, picture["height_width"]))
        differences = [case["pictures"][name]["largest_difference"] for case in (small, published)]
        cells = " | ".join(f"{difference:.1e}" for difference in differences)
        assert re.search(rf"^\| {size}[^|]* \| {re.escape(cells)} \|$", page, re.MULTILINE)
    for case in (small, published):
        assert f"{case['parameters']:,} parameters" in page
        assert (case["tensors_largest_difference"], case["gradient_relative_difference"]) == (0.0, 0.0)
        assert case["tokens_are_equal"]
    reference = small["reference"]
    assert f"image-reward {reference['image-reward']} with transformers {reference['transformers']}" in page


def test_the_parity_page_says_what_was_measured() -> None:
    page = (REPOSITORY / "benchmarks" / "parity" / "README.md").read_text(encoding="utf-8")
    result = json.loads((REPOSITORY / "results" / "parity" / "hpsv2.json").read_text(encoding="utf-8"))
    assert len(result["cases"]) == 4
    for case in result["cases"].values():
        size = "x".join(map(str, case["image_height_width"]))
        assert re.search(rf"^\| {size}.* \| {case['largest_difference']:.1e} \|$", page, re.MULTILINE)
    assert f"agrees to {result['gradient_relative_difference']:.1e} of its" in page
    assert f"open_clip {result['reference']['open_clip']}" in page


@pytest.mark.parametrize("name", ["demo", "demo_compressibility", "demo_d3po", "demo_diffusion_dpo"])
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
