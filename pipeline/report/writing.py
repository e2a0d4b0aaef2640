"""The report's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.parquet_file import write_parquet
from pipeline.report.build import build_report
from pipeline.report.comparison import compare
from pipeline.report.content import Section
from pipeline.report.evaluation_page import build_evaluation_report
from pipeline.report.history import read_run
from pipeline.report.numbers import curves_table, differences_table, held_out_table
from pipeline.report.rendering import render_markdown, render_page
from pipeline.run_folder import write_text


def write_report(
    folders: Sequence[Path],
    directory: Path,
    labels: Mapping[Path, str] | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Write report.html, report.md, report_curves.parquet and report_held_out.parquet of some runs.

    With several methods, report_differences.parquet too.

    Nothing is written unless all of it can be. The same folders give the same bytes.

    Args:
        labels: what to call the method of each folder; by default its settings say.
        sections: sections of the caller's, which follow those about held-out prompts.

    Returns:
        The page.

    Raises:
        ValueError: no folder, a malformed one, or the same settings and seed twice; see `read_run` and `compare`.
    """
    comparison = compare([read_run(folder) for folder in folders], labels)
    report = build_report(comparison, sections)
    page, markdown = render_page(report), render_markdown(report)
    tables = {"report_curves": curves_table(comparison), "report_held_out": held_out_table(comparison)}
    differences = directory / "report_differences.parquet"
    if len(comparison.methods) > 1:
        tables[differences.stem] = differences_table(comparison)
    else:
        differences.unlink(missing_ok=True)  # of a report on several that lay here
    for name, table in tables.items():
        write_parquet(table, directory / f"{name}.parquet")
    write_text(directory / "report.md", markdown)
    write_text(directory / "report.html", page)
    return directory / "report.html"


def write_evaluation_report(folder: Path, directory: Path) -> Path:
    """Write report.html and report.md of the folder of an evaluation of adapters.

    Returns:
        The page.

    Raises:
        ValueError: a file of the folder is missing or malformed; the message names it.
    """
    report = build_evaluation_report(folder)
    write_text(directory / "report.md", render_markdown(report))
    write_text(directory / "report.html", render_page(report))
    return directory / "report.html"
