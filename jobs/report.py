"""Write the report of runs, or of an evaluation: `python jobs/report.py runs/one [runs/two ...] --output DIR`."""

import argparse
from pathlib import Path

from jobs.quiet import be_quiet, one_readable_message
from pipeline.report.evaluation_page import is_evaluation_folder
from pipeline.report.history import has_finished_iteration
from pipeline.report.writing import write_evaluation_report, write_report


def main(arguments: list[str] | None = None) -> None:
    """Write the report and say where it is; a fault of the user's ends it with one readable message."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="run folders (those that differ in their seed alone are repeats), or one folder of jobs/evaluate.py",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="where report.html and its numbers go"
    )
    options = parser.parse_args(arguments)
    be_quiet()
    with one_readable_message():
        if len(options.runs) == 1 and is_evaluation_folder(options.runs[0]):
            page = write_evaluation_report(options.runs[0], options.output)
        else:
            young = [run for run in options.runs if not has_finished_iteration(run)]
            for run in young:
                print(f"left out: {run} has no finished iteration yet")
            page = write_report([run for run in options.runs if run not in young] or young, options.output)
        print(f"report in {page}")


if __name__ == "__main__":
    main()
