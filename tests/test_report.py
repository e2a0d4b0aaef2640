"""The report's files: the page, its Markdown and its Parquet tell the same numbers, and hold all that they show."""

import base64
import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from run_folders import REPOSITORY, RESULTS, UNGUIDED, iteration_metrics, reward_row, write_pictures, write_run_folder

from jobs.report import main
from pipeline.report.build import build_report
from pipeline.report.comparison import compare
from pipeline.report.history import read_run
from pipeline.report.pictures_section import MOST_BYTES, embed
from pipeline.report.writing import write_report

FILES = ["report.html", "report.md", "report_curves.parquet", "report_held_out.parquet"]


class Page(HTMLParser):
    """What a page refers to, its pictures, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.alternatives: dict[str, str] = {}
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.references += [value for name in ("src", "href", "srcset", "data") if (value := values.get(name))]
        if tag == "img":
            self.alternatives[values["src"] or ""] = values["alt"] or ""

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def charts(self) -> list[ElementTree.Element]:
        uris = [uri for uri in self.alternatives if uri.startswith("data:image/svg+xml;base64,")]
        return [ElementTree.fromstring(base64.b64decode(uri.split(",")[1])) for uri in uris]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two methods, the first with a run that is shorter than the other."""
    runs = tmp_path_factory.mktemp("runs")
    hacking = {"diversity": {"base": 0.5, "aligned": 0.25, "low": -0.5, "high": -0.125, "moved": True}}
    verdict = "<b>diversity</b> fell | twice"
    folders = [
        write_run_folder(runs / "g0", [1.0, 2.0, 3.0, 9.0], evaluation={"rewards": {"clip": reward_row(0.5)}}),
        write_run_folder(
            runs / "g1",
            [3.0, 4.0, 8.0],
            evaluation={"rewards": {"clip": reward_row(1.5)}, "hacking": hacking, "verdict": verdict},
            seed=1,
        ),
        write_run_folder(runs / "plain", [0.5, 0.75], UNGUIDED, {"rewards": {"clip": reward_row(0.25)}}),
    ]
    write_pictures(folders[0])
    cluster = {"mode": "started", "log_directory": "/a/session/logs", "resources": {"CPU": 4.0, "node:10.0.0.1": 1.0}}
    environment = {"python": "3.11.9", "gpus": ["a GPU"], "git": None, "cluster": cluster}
    (folders[0] / "environment.json").write_text(json.dumps(environment))
    return write_report(folders, runs / "report").parent


def read_curves(directory: Path) -> pd.DataFrame:
    return pd.read_parquet(directory / "report_curves.parquet")


def test_all_files_are_there_and_nothing_else(compared):
    assert sorted(path.name for path in compared.iterdir()) == sorted([*FILES, "report_differences.parquet"])


def test_the_page_holds_all_that_it_shows(compared):
    page = Page(compared / "report.html")
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert {"script", "iframe", "object", "video"}.isdisjoint(page.tags)
    assert all(page.alternatives.values())


def test_charts_say_what_they_show_and_are_drawings_with_text(compared):
    page = Page(compared / "report.html")
    assert len(page.charts) == 4  # held-out differences, and the reward by three costs
    texts = ["".join(chart.itertext()) for chart in page.charts]
    assert all("TailorPO-G" in text and "TailorPO" in text for text in texts)
    for cost in ("trajectories", "network calls", "seconds"):
        assert sum(cost in text for text in texts) == 1
    assert "The first point is the base model." in page.text
    words = " ".join(page.alternatives.values())
    assert "TailorPO-G from 2.0000 at 0 to 5.5000 at 128" in words
    assert "TailorPO-G +1.0000 [-5.3539, +7.3539]; TailorPO +0.2500 [+0.1500, +0.3500]" in words


def test_page_and_markdown_tell_the_same_comparison(compared):
    page, markdown = Page(compared / "report.html"), (compared / "report.md").read_text(encoding="utf-8")
    cells = ["clip", "TailorPO-G", "2", "20.0000", "21.0000", "+1.0000", "[-5.3539, +7.3539]", "0.600", "256"]
    assert f"| {' | '.join(cells)} |" in markdown
    assert all(cell in page.text for cell in cells)
    assert "| diversity | TailorPO-G | 1 | 0.5000 | 0.2500 | -0.2500 | [-0.5000, -0.1250] |" in markdown
    assert "0 of 3 runs have all their iterations" in page.text and "0 of 3 runs" in markdown
    assert "| TailorPO-G | g0 | 0 | 4 of 24 | 256 | 11,520 | 45 | 40 s | 30 s | 10 s |" in markdown
    moved = "TailorPO-G: beyond the base model's own spread moved diversity in 1 of 1 runs."
    assert moved in page.text and moved in markdown
    assert "lora:" in page.text and "a GPU" in page.text
    assert '"mode": "started"' in page.text and '"CPU": 4.0' in page.text
    assert "session/logs" not in page.text and "node:" not in page.text, "a page is for other machines"


def test_words_from_a_run_folder_stay_words(compared):
    assert "<b>diversity</b> fell | twice" in Page(compared / "report.html").text
    assert "<b>diversity" not in (compared / "report.html").read_text(encoding="utf-8")


def test_curves_open_in_pandas_run_by_run_and_over_seeds(compared):
    curves = read_curves(compared)
    run = curves[(curves.run == "g1") & (curves.metric == "reward")]
    assert run.value.tolist() == [3.0, 4.0, 8.0]
    assert run.trajectories.tolist() == [0, 64, 128] and run.network_calls.tolist() == [0, 2880, 5760]
    assert run.seconds.tolist() == [0.0, 10.0, 20.0]
    gaps = curves[(curves.run == "plain") & (curves.metric == "step_gap") & (curves.iteration == 1)]
    assert dict(zip(gaps.step, gaps.value, strict=True)) == {18: 1.0, 16: 2.0, 14: 3.0, 12: 4.0, 10: 5.0}
    band = curves[curves.run.isna()]
    assert set(band.method) == {"TailorPO-G"} and set(band.metric) == {"reward"} and set(band.runs) == {2}
    assert band.value.tolist() == [2.0, 3.0, 5.5]
    assert band.low.tolist() == [1.0, 2.0, 3.0] and band.high.tolist() == [3.0, 4.0, 8.0]


def test_every_metric_of_a_committed_run_is_in_its_parquet(tmp_path):
    write_report([RESULTS / "demo"], tmp_path)
    curves = read_curves(tmp_path)
    lines = [json.loads(line) for line in (RESULTS / "demo" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        own = curves[curves.iteration == line["iteration"]]
        for name, value in line.items():
            if name == "iteration" or isinstance(value, str | dict):  # of minibatches metrics.jsonl alone tells
                continue
            assert own[own.metric == name].value.tolist() == (value if isinstance(value, list) else [value])


def test_held_out_comparisons_open_in_pandas(compared):
    held_out = pd.read_parquet(compared / "report_held_out.parquet")
    assert held_out[held_out.run == "g1"][["measure", "difference", "low"]].values.tolist() == [
        ["clip", 1.5, 1.4],
        ["diversity", -0.25, -0.5],
    ]
    over_seeds = held_out[held_out.run.isna() & (held_out.measure == "clip")]
    assert over_seeds[["method", "difference", "runs", "pairs"]].values.tolist() == [
        ["TailorPO-G", 1.0, 2, 256],
        ["TailorPO", 0.25, 1, 128],
    ]


def test_a_single_run_shows_its_diagnostics(tmp_path):
    page = Page(write_report([RESULTS / "demo"], tmp_path))
    text = "".join("".join(chart.itertext()) for chart in page.charts)
    for label in ("loss", "implicit accuracy", "margin", "gradient norm", "share of ties", "drift", "accepted moves"):
        assert label in text, label
    assert len(page.charts) == 3 + 6 + 5
    iterations = len((RESULTS / "demo" / "metrics.jsonl").read_text().splitlines())
    assert f"{iterations} of {iterations} iterations are done" in page.text
    shown = json.loads((RESULTS / "demo" / "evaluation.json").read_text())["rewards"]["clip"]
    assert f"{shown['difference']:+.4f}" in page.text
    assert f"[{shown['low']:+.4f}, {shown['high']:+.4f}]" in page.text


def test_a_run_of_one_iteration_that_is_not_evaluated_has_a_report(tmp_path):
    page = Page(write_report([write_run_folder(tmp_path / "young", [1.0])], tmp_path / "report"))
    assert "No run has been evaluated" in page.text and "1 of 24 iterations" in page.text
    assert pd.read_parquet(tmp_path / "report" / "report_held_out.parquet").empty


def test_runs_of_different_rewards_share_no_chart(tmp_path):
    page = Page(write_report([RESULTS / "demo", RESULTS / "demo-compressibility"], tmp_path))
    labels = [{element.text for element in chart.iter() if element.text} for chart in page.charts]
    training = [label for label in labels if "trajectories" in label]
    assert ["clip" in label for label in training] == [True, False]
    assert ["jpeg_compressibility" in label for label in training] == [False, True]


def test_the_same_folders_give_the_same_bytes(tmp_path):
    folders = [RESULTS / "demo", RESULTS / UNGUIDED]
    for name in ("one", "other"):
        write_report(folders, tmp_path / name)
    for file in (*FILES, "report_differences.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file


def test_long_runs_of_many_methods_and_seeds_stay_a_small_page(tmp_path):
    generator = np.random.default_rng(0)
    folders = [
        write_run_folder(
            tmp_path / f"m{method}-seed{seed}", generator.normal(size=500).tolist(), seed=seed, iterations=500 + method
        )
        for method in range(6)
        for seed in range(3)
    ]
    path = write_report(folders, tmp_path / "report")
    assert path.stat().st_size < 3_000_000
    page = Page(path)
    assert "Each point is the mean of 5 consecutive iterations; the base model is but the first" in page.text
    assert "The first point is the base model." not in page.text
    assert " at 128 to " in " ".join(page.alternatives.values()), "the middle of five iterations of 64 trajectories"


@pytest.mark.parametrize(
    ("prompts", "which"), [({"held_out": "demo"}, "held-out prompts"), ({"held_out": "animals"}, "prompts trained on")]
)
def test_pictures_say_by_which_reward_and_of_which_prompts_they_are(tmp_path, prompts, which):
    """An evaluation of the adapter that was copied into the run folder may begin with another reward."""
    folder = write_run_folder(
        tmp_path / "run",
        [1.0],
        evaluation={"rewards": {"pickscore": reward_row(0.5), "clip": reward_row(0.25)}},
        prompts={"train": "animals", **prompts},
    )
    write_pictures(folder)
    shutil.copy(folder / "before_after.png", folder / "best.png")
    (section,) = [
        section for section in build_report(compare([read_run(folder)])).sections if section.title == "Pictures"
    ]
    captions = [picture.caption for picture in section.pictures if "whose" in picture.caption]
    assert captions == [
        f"Base beside TailorPO-G, {which} whose clip changed most (run)",
        f"Base beside TailorPO-G, {which} whose pickscore rose most (run)",
    ]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_a_small_picture_keeps_every_pixel(tmp_path):
    write_pictures(write_run_folder(tmp_path / "run", [1.0]), side=100)
    path = tmp_path / "run" / "before_after.png"
    image = decoded(embed(path))
    assert image.size == (600, 600)
    small = image.resize((100, 100), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(small), np.asarray(Image.open(path)))


def test_a_large_picture_is_made_to_fit(tmp_path):
    write_pictures(write_run_folder(tmp_path / "run", [1.0]), side=1500)
    uri = embed(tmp_path / "run" / "before_after.png")
    assert uri.startswith("data:image/jpeg") and len(uri) < 1.4 * MOST_BYTES
    assert 512 <= decoded(uri).width < 1500


def test_a_picture_that_is_none_is_named_and_nothing_is_written(tmp_path):
    folder = write_run_folder(tmp_path / "run", [1.0])
    (folder / "before_after.png").write_text("no picture")
    with pytest.raises(ValueError, match=f"{folder}/before_after.png is no picture"):
        write_report([folder], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_job_says_where_the_report_is(tmp_path, capsys):
    main([str(RESULTS / "demo"), "--output", str(tmp_path)])
    assert capsys.readouterr().out == f"report in {tmp_path / 'report.html'}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_the_job_leaves_out_runs_that_have_nothing_to_report_yet(tmp_path, capsys):
    begun, young = write_run_folder(tmp_path / "begun", [1.0]), write_run_folder(tmp_path / "young", [], seed=1)
    main([str(begun), str(young), "--output", str(tmp_path / "report")])
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"left out: {young} has no finished iteration yet" and last.startswith("report in ")
    assert set(read_curves(tmp_path / "report")["run"]) == {"begun"}


def test_the_job_ends_with_one_readable_message(tmp_path):
    with pytest.raises(SystemExit, match=f"^error: {tmp_path} is no run folder"):
        main([str(tmp_path), "--output", str(tmp_path / "report")])


def test_the_job_needs_neither_ray_nor_torch(tmp_path):
    """Modules of those names that fail to import stand in the way."""
    for name in ("ray", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a report needs none')\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from jobs.report import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", program, str(RESULTS / "demo"), "--output", str(tmp_path / "report")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""


def test_a_metric_that_was_infinite_leaves_a_gap_and_no_fault(tmp_path):
    folder = write_run_folder(tmp_path / "run", [])
    lines = [iteration_metrics(index, 1.0, gradient_norm=None if index == 1 else 0.5) for index in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report([folder], tmp_path / "report"))
    assert any("gradient norm over trajectories: from 0.5 to 0.5" in alt for alt in page.alternatives.values())
