"""Small parts of the report: numbers in words, looks that can be told apart, templates that travel with the package."""

import re
import shutil
import subprocess
import sys
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from run_folders import REPOSITORY

from pipeline.report.aggregate import Band
from pipeline.report.charts import Bar, Curve, interval_chart, line_chart
from pipeline.report.comparison import Comparison, Method
from pipeline.report.looks import COLOURS, PLAIN, looks_of, ordered_looks
from pipeline.report.wording import duration, evenly_spaced, interval, listed, number, precise, signed, time_unit


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (number(20.01004), "20.0100"),
        (number(0.0), "0.0000"),
        (number(0.00045), "0.00045"),
        (number(-3.1e-6), "-3.1e-06"),
        # What is left of a mean of differences that cancel.
        (number(-1.4e-19), "0.0000"),
        (signed(-1.4e-19), "+0.0000"),
        (number(None), "–"),
        (number(float("nan")), "–"),
        (number(0.5664, decimals=3), "0.566"),
        (signed(0.25), "+0.2500"),
        (signed(-0.25), "-0.2500"),
        (interval(-0.5, 1.0), "[-0.5000, +1.0000]"),
        (precise(0.69314549), "0.693145"),
        (precise(float("nan")), "–"),
        (duration(0.4), "0 s"),
        (duration(354.4), "5 min 54 s"),
        (duration(3600 + 59 * 60 + 59.9), "2 h 00 min"),
        (time_unit(119.0), "seconds"),
        (time_unit(120.0), "minutes"),
        (time_unit(7 * 86400.0), "days"),
        (time_unit(0.0), "seconds"),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (evenly_spaced(1, 11), [0]),
        (evenly_spaced(5, 11), [0, 1, 2, 3, 4]),
        (evenly_spaced(101, 3), [0, 50, 100]),
    ],
)
def test_in_words(written, expected):
    assert written == expected


def contrast_on_white(colour: str) -> float:
    """The contrast ratio of WCAG 2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_contrast_by_hand():
    assert contrast_on_white("#ffffff") == pytest.approx(1) and contrast_on_white("#000000") == pytest.approx(21)


def test_colours_stand_out_from_white():
    steps = [look.colour for look in ordered_looks(5)]
    assert min(map(contrast_on_white, COLOURS)) > 3
    assert min(map(contrast_on_white, steps)) > 2.5


def test_a_dozen_methods_look_different():
    looks = looks_of(Comparison(tuple(Method(str(index), ()) for index in range(12))))
    assert len(set(looks.values())) == 12
    assert len({(looks[str(index)].colour) for index in range(6)}) == 6


def test_steps_go_from_dark_to_light():
    contrasts = [contrast_on_white(look.colour) for look in ordered_looks(20)]
    assert contrasts == sorted(contrasts, reverse=True)


LABELS = ["costs $5", "$\\frac{1$ of $2", "_private", "__", "-_ a & b <c>", "a_{b}^c"]


def words_of(document: str) -> str:
    return "\n".join(ElementTree.fromstring(document).itertext())


def heights_of_band(low: list[float], high: list[float]) -> set[str]:
    """Where the filled area of a chart has corners, above the lower edge of the page."""
    x, mean = np.array([0.0, 10.0]), np.array([1.0, 2.0])
    document = line_chart([Curve("", Band(x, mean, np.array(low), np.array(high)))], "iterations", "reward")
    (area,) = re.findall(r'<g id="FillBetweenPolyCollection_1">.*?\bd="(.*?)"', document, flags=re.DOTALL)
    return set(re.findall(r"[ML] \S+ (\S+)", area))


def test_a_band_is_as_high_as_the_range_of_its_runs():
    assert len(heights_of_band([0.5, 1.5], [1.25, 2.25])) == 4
    assert len(heights_of_band([1.0, 2.0], [1.0, 2.0])) == 2


def test_labels_are_written_as_they_are():
    """Dollar signs are no mathematics, which may be malformed, and a label that begins with _ is one."""
    numbers = np.array([0.0, 1.0])
    curves = [Curve(label, Band(numbers, numbers, numbers, numbers)) for label in LABELS]
    drawn = words_of(line_chart(curves, "$x", "$\\y$"))
    assert all(label in drawn for label in [*LABELS, "$x", "$\\y$"])
    drawn = words_of(interval_chart([Bar(label, 0.0, -1.0, 1.0, PLAIN) for label in LABELS], "$x$"))
    assert all(label in drawn for label in [*LABELS, "$x$"])


def test_a_wheel_has_every_file_of_the_packages(tmp_path):
    listed_files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "pipeline", "actors", "jobs"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    # Built from a copy: what an earlier build left beside the sources would be packaged again.
    for name in [*listed_files, "pyproject.toml", "README.md", "LICENSE"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    program = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packaged == set(listed_files)
