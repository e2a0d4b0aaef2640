"""Pytest plugin: one finished run for the whole session."""

from pathlib import Path

import pytest
from job_runs import PLANTED_SECRETS, FinishedJob, run_align, write_run_config


@pytest.fixture(scope="session")
def undisturbed_run(
    miniature_model: Path, miniature_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FinishedJob, Path]:
    """A run that nothing happened to, with secrets in its environment: what it printed, and its folder."""
    directory = tmp_path_factory.mktemp("undisturbed")
    config = write_run_config(directory, miniature_model, miniature_clip)
    job = run_align("--config", config, variables=PLANTED_SECRETS)
    assert job.exit_code == 0, job.stderr
    return job, directory / "guided"
