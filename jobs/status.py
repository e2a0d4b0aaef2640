"""Say where runs stand, from their files alone: `python jobs/status.py runs/one [s3://bucket/runs/two ...]`."""

import argparse
import time

from jobs.quiet import be_quiet, one_readable_message
from pipeline.report.status import read_status
from pipeline.report.status_text import status_text


def main(arguments: list[str] | None = None) -> None:
    """Print a paragraph per run; folders that are no runs are named at the end, and make the job fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="run folders, also in a bucket, whatever their state"
    )
    options = parser.parse_args(arguments)
    be_quiet()
    faults = []
    with one_readable_message():
        for location in options.runs:
            try:
                print(status_text(read_status(location), time.time()), end="\n\n")
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ValueError("\n".join(faults))


if __name__ == "__main__":
    main()
