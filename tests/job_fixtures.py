"""Pytest plugin: one finished run for the whole session."""

import json
from pathlib import Path

import pytest
from job_runs import PLANTED_SECRETS, FinishedJob, run_align, write_run_config
from made_once import made_once


@pytest.fixture(scope="session")
def undisturbed_run(
    miniature_model: Path, miniature_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FinishedJob, Path]:
    """A run that nothing happened to, with secrets in its environment: what it printed, and its folder."""

    def run(directory: Path) -> None:
        config = write_run_config(directory, miniature_model, miniature_clip)
        # Nothing is fetched: a hub that is not asked need not be there.
        job = run_align("--config", config, variables=PLANTED_SECRETS | {"HF_HUB_OFFLINE": "1"})
        assert job.exit_code == 0, job.stderr
        (directory / "job.json").write_text(json.dumps(job._asdict()), encoding="utf-8")

    directory = made_once(tmp_path_factory, "undisturbed", run)
    return FinishedJob(**json.loads((directory / "job.json").read_text(encoding="utf-8"))), directory / "guided"
