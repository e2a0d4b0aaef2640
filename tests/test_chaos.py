"""The benchmark of kills in short: parts of a run on a cluster of its own are killed by a seeded schedule.

tests/test_training.py kills the others, one after another, in one iteration.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from job_runs import REPOSITORY

from benchmarks.chaos.disturbance import DRIVER, NODE, schedule

KILLS, SEED = 3, 2
WORKER = "a rollout worker in a trajectory"

PATIENCE_S = 1700  # below the time limit of a test, so that what it started ends with it


@pytest.mark.slow
def test_whatever_is_killed_the_run_is_what_it_would_have_been(tmp_path: Path) -> None:
    assert set(schedule(KILLS, SEED)) == {DRIVER, NODE, WORKER}
    table = tmp_path / "chaos.json"
    run = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.chaos", *(f"--kills={KILLS}", f"--seed={SEED}", f"--output={table}")],
        cwd=REPOSITORY,
        # A process has one login to Ray, and this one's is another cluster's.
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = run.communicate(timeout=PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, errors[-3000:]
    found = json.loads(table.read_text())
    assert [kill["victim"] for kill in found["kills"]] == schedule(KILLS, SEED)
    assert all(kill["outcome"] == "done once, same records, same adapter" for kill in found["kills"])
    assert found["every_iteration_once"] and found["same_records"] and found["same_adapter_after_every_iteration"]
    told = {kill["victim"]: kill["told"] for kill in found["kills"]}
    assert "lost" in told[WORKER] and "the learner begins" in told[DRIVER], "nothing was killed"
