"""Looks for planted secrets in all that a run leaves behind."""

from pathlib import Path

import pyarrow.parquet as pq
from job_runs import PLANTED_SECRETS, FinishedJob


def files_left_behind(folder: Path, logs: Path) -> list[Path]:
    """Those of a run folder, and the logs of Ray's own services and of every worker of its session."""
    return [path for directory in (folder, logs) for path in directory.rglob("*") if path.is_file()]


def assert_no_secret_shows(job: FinishedJob, files: list[Path]) -> None:
    """Neither in a file nor in a line that the job printed.

    Raises:
        AssertionError: where one shows.
    """
    for secret in PLANTED_SECRETS.values():
        assert [path for path in files if secret.encode() in contents(path)] == []
        assert secret not in job.stdout + job.stderr


def contents(file: Path) -> bytes:
    """What is written in a file, compressed tables unpacked."""
    unpacked = str(pq.read_table(file).to_pydict()).encode() if file.suffix == ".parquet" else b""
    return file.read_bytes() + unpacked
