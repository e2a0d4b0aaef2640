"""The run folder: files that are whole or not there, and metrics that a kill cannot corrupt."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.run_folder import MetricsFile, write_json, write_text


def metrics(iteration: int) -> dict[str, Any]:
    return {"iteration": iteration, "reward": iteration / 3, "step_gap": [0.1, 0.2], "note": "größer 🦊"}


@pytest.fixture
def written(tmp_path: Path) -> MetricsFile:
    """Iterations 0 to 4."""
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    assert file.keep_before(0) == []
    for iteration in range(5):
        file.append(metrics(iteration))
    return file


def test_a_line_is_one_iteration(written: MetricsFile) -> None:
    lines = written.path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [metrics(iteration) for iteration in range(5)] == written.read()


def test_a_mean_over_nothing_is_null_in_strict_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"iteration": 0, "loss": math.nan, "margin": math.inf, "reward": 1.0})
    assert json.loads(file.path.read_text(), parse_constant=pytest.fail) == {
        "iteration": 0,
        "loss": None,
        "margin": None,
        "reward": 1.0,
    }


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert MetricsFile(tmp_path / "metrics.jsonl").read() == []


def test_wherever_a_kill_cuts_the_file_whole_lines_stay(written: MetricsFile) -> None:
    content = written.path.read_bytes()
    for length in range(len(content) + 1):
        written.path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        assert written.read() == [metrics(iteration) for iteration in range(whole)]


@pytest.mark.parametrize("half_line", [False, True])
def test_a_resumed_run_writes_every_iteration_once(written: MetricsFile, half_line: bool) -> None:
    if half_line:
        with written.path.open("a") as file:
            file.write('{"iteration": 5, "rew')
    assert written.keep_before(3) == [metrics(iteration) for iteration in range(3)]
    written.append(metrics(3) | {"note": "again"})
    assert [line["iteration"] for line in written.read()] == [0, 1, 2, 3]
    assert written.read()[-1]["note"] == "again"
    assert [path.name for path in written.path.parent.iterdir()] == ["metrics.jsonl"]


def test_appended_lines_survive_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = f"""
import itertools, pathlib
from pipeline.run_folder import MetricsFile
file = MetricsFile(pathlib.Path({str(path)!r}))
for iteration in itertools.count():
    file.append({{"iteration": iteration, "padding": "x" * 5000}})
    print(iteration, flush=True)
"""
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert process.stdout is not None
    for _ in range(20):
        promised = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    iterations = [line["iteration"] for line in MetricsFile(path).read()]
    assert iterations == list(range(len(iterations)))
    assert len(iterations) > promised


def test_text_replaces_a_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "note.txt"
    write_text(path, "first, and longer")
    write_text(path, "größer 🦊\n")
    assert path.read_text(encoding="utf-8") == "größer 🦊\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["note.txt"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "kept")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it\ud800")
    assert path.read_text() == "kept"


def test_json_is_readable_by_people_and_programs(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"name": "größer 🦊", "values": [1, 2.5, None]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "größer 🦊", "values": [1, 2.5, None]}
    assert "größer 🦊" in text
    assert text.endswith("}\n")


def test_what_is_no_finite_number_is_null_in_strict_json(tmp_path: Path) -> None:
    value = {"reward": math.nan, "rows": [{"low": -math.inf, "high": 0.5}, (1, math.inf)], "name": "nan"}
    write_json(tmp_path / "summary.json", value)
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "reward": None,
        "rows": [{"low": None, "high": 0.5}, [1, None]],
        "name": "nan",
    }
