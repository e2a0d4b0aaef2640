"""The report in a real browser: Chromium without a window, at the widths of a desk and of a phone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from drawn import drawn_images
from eventually import PATIENCE_S
from playwright.sync_api import Browser, Page, sync_playwright
from run_folders import RESULTS, UNGUIDED, reward_row, write_pictures, write_run_folder

from pipeline.evaluation.evaluation import compare_drawn
from pipeline.evaluation.folder import open_folder, write_adapter
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.report.writing import write_evaluation_report, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH; on Debian and Ubuntu: apt-get install chromium"
)

# Root has no sandbox, a test machine no GPU; the rest keeps the browser itself off the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

DESK, PHONE = (1280, 900), (390, 844)

COMMITTED = sorted(page.parent.name for page in RESULTS.glob("*/report.html"))


class Visit(NamedTuple):
    """An open page, with what it asked for and what it complained about."""

    page: Page
    requests: list[str]
    complaints: list[str]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Playwright makes a new profile for every start.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a single run, and that of three methods with everything in it and long names."""
    runs = tmp_path_factory.mktemp("runs")
    measures = {"mean distance between images of a prompt": {"base": 0.5, "aligned": 0.4, "low": -0.2, "high": 0.1}}
    evaluation = {"rewards": {"clip": reward_row(0.5), "scene_judge": reward_row(-0.1)}, "hacking": measures}
    folders = [
        write_run_folder(
            runs / f"{like}-with-a-name-longer-than-a-phone-is-wide-{iterations}-seed{seed}",
            [0.1 * index for index in range(12 - seed)],
            like,
            evaluation | {"verdict": "nothing points at a hacked reward"},
            seed=seed,
            iterations=iterations,
        )
        for like, iterations in (("demo", 12), (UNGUIDED, 12), (UNGUIDED, 13))
        for seed in (0, 1)
    ]
    for folder in folders:
        write_pictures(folder, side=200)
        (folder / "environment.json").write_text('{"python": "3.11.9", "packages": {"torch": "2.13.0"}, "git": null}')
    return {
        "single": write_report([RESULTS / "demo"], runs / "single"),
        "comparison": write_report(folders, runs / "comparison"),
    }


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(params=["single", "comparison"])
def visit(request: pytest.FixtureRequest, browser: Browser, reports: dict[str, Path], size) -> Iterator[Visit]:
    with visiting(reports[request.param], browser, size) as visit:
        yield visit


@contextmanager
def visiting(file: Path, browser: Browser, size: tuple[int, int]) -> Iterator[Visit]:
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, is_mobile=size == PHONE)
    context.set_default_timeout(PATIENCE_S * 1000)
    page = context.new_page()
    visit = Visit(page, [], [])
    page.on("request", lambda asked: visit.requests.append(asked.url))
    page.on("console", lambda message: visit.complaints.append(message.text))
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.goto(file.as_uri(), wait_until="load")
    yield visit
    context.close()


def test_it_asks_the_network_for_nothing_and_complains_of_nothing(visit):
    (document, *embedded) = visit.requests
    assert document.startswith("file://")
    assert all(url.startswith("data:") for url in embedded)
    assert visit.complaints == []


def test_every_chart_and_picture_is_drawn(visit):
    images = visit.page.eval_on_selector_all(
        "img", "all => all.map(image => [image.complete, image.naturalWidth, image.clientWidth, image.alt])"
    )
    assert len(images) >= 6
    assert all(complete and natural > 0 and shown >= 300 and alt for complete, natural, shown, alt in images)


def test_nothing_moves_sideways_folded_or_open(visit, size):
    for _ in ("folded", "open"):
        assert visit.page.evaluate("document.documentElement.scrollWidth") == size[0]
        assert visit.page.evaluate("document.body.scrollWidth") <= size[0]
        visit.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")


def test_what_is_folded_opens_with_the_keyboard(visit):
    page = visit.page
    listing = page.locator("#settings details").first
    assert not listing.locator("pre").is_visible()
    listing.locator("summary").focus()
    page.keyboard.press("Enter")
    assert "learning_rate" in listing.locator("pre").inner_text()


def test_text_in_charts_is_large_enough(visit):
    """The 10-point text of a chart, in pixels of the screen."""
    charts = visit.page.eval_on_selector_all(
        ".chart img", "all => all.map(image => image.clientWidth / image.naturalWidth)"
    )
    # A point is 4/3 pixels at the chart's natural size.
    assert charts and min(charts) * 10 * 4 / 3 >= 10


def test_tables_become_cards_on_a_phone_that_show_all_their_cells(visit, size):
    table = visit.page.locator("#held-out-evaluation table.cards")
    assert table.locator("thead").bounding_box()["height"] == pytest.approx(1 if size == PHONE else 30, abs=10)
    cells = [cell.bounding_box() for cell in table.locator("tbody td").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= size[0] for box in cells)


def test_the_contents_lead_to_the_sections(visit):
    page = visit.page
    page.locator("nav a", has_text="Budget").click()
    assert page.evaluate("location.hash") == "#budget"
    assert page.locator("#budget h2").is_visible()


@pytest.fixture(scope="module")
def evaluation_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an evaluation of two adapters, one of them with a long name, by two rewards."""
    folder = tmp_path_factory.mktemp("evaluation")
    generator, prompts = np.random.default_rng(0), ["a cat", "a dog under a bridge at night", "a fox"] * 4
    base, aligned = (
        drawn_images(
            generator.normal(size=(len(prompts), 2)),
            prompts,
            images=generator.integers(0, 256, (len(prompts), 32, 32, 3), dtype=np.uint8),
        )
        for _ in range(2)
    )
    rewards = ("clip", "jpeg_compressibility")
    evaluation = compare_drawn(base, aligned, rewards, (), seed=0)
    labels = ("mine", "an-adapter-with-a-name-longer-than-a-phone-is-wide-and-then-some")
    settings = AdapterEvaluationSettings.model_validate(
        {
            "model": {"path": "models/demo"},
            "adapters": [{"name": label, "path": "somewhere"} for label in labels],
            "prompts": "animals",
            "rewards": [{"name": "clip", "path": "models/demo-clip"}, {"name": "jpeg_compressibility"}],
        }
    )
    open_folder(settings, folder)
    for label in labels:
        write_adapter(evaluation, rewards, (), ["clip"], {"adapter_sha256": "ab"}, folder / label)
    return write_evaluation_report(folder, folder)


@pytest.mark.parametrize("name", ["evaluation", *COMMITTED])
def test_a_page_of_another_kind_is_whole_too(browser, evaluation_page, name, size):
    file = evaluation_page if name == "evaluation" else RESULTS / name / "report.html"
    with visiting(file, browser, size) as visit:
        assert all(url.startswith("data:") for url in visit.requests[1:]) and visit.complaints == []
        images = visit.page.eval_on_selector_all(
            "img", "all => all.map(image => [image.complete, image.naturalWidth, image.alt])"
        )
        assert len(images) >= 3 and all(complete and natural > 0 and alt for complete, natural, alt in images)
        for _ in ("folded", "open"):
            assert visit.page.evaluate("document.documentElement.scrollWidth") == size[0]
            visit.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")


def test_a_page_that_fetches_is_seen(browser, tmp_path):
    """What the tests above look at does show a picture from elsewhere."""
    (tmp_path / "page.html").write_text("<img src='http://nowhere.invalid/picture.png' alt=''>")
    page = browser.new_page()
    requests, complaints = [], []
    page.on("request", lambda asked: requests.append(asked.url))
    page.on("console", lambda message: complaints.append(message.text))
    with page.expect_console_message(timeout=PATIENCE_S * 1000):
        page.goto((tmp_path / "page.html").as_uri(), wait_until="load")
    assert requests[1:] == ["http://nowhere.invalid/picture.png"]
    assert complaints
    page.close()
