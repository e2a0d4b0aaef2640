"""Say where runs stand, from their files alone: `python jobs/status.py runs/one [runs/two ...]`."""

import argparse
import time
from pathlib import Path

from jobs.quiet import be_quiet, one_readable_message
from pipeline.report.status import read_status
from pipeline.report.status_text import status_text


def main(arguments: list[str] | None = None) -> None:
    """Print a paragraph per run; folders that are no runs are named at the end, and make the job fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, whatever their state")
    options = parser.parse_args(arguments)
    be_quiet()
    faults = []
    with one_readable_message():
        for folder in options.runs:
            try:
                print(status_text(read_status(folder), time.time()), end="\n\n")
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ValueError("\n".join(faults))


if __name__ == "__main__":
    main()
