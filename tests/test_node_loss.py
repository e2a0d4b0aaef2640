"""A whole node is lost in the middle of an iteration, with the worker on it and its batches."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray_head import QUICK_HEALTH_CHECKS

pytest_plugins = ["model_fixtures"]

PATIENCE_S = 1700  # below the time limit of a test, so that what it started ends with it

TESTS = Path(__file__).resolve().parent


@pytest.mark.slow
def test_a_run_that_loses_a_node_ends_with_the_same_adapter_and_every_record(miniature_model: Path, tmp_path: Path):
    variables = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, str(TESTS / "node_loss_run.py"), str(miniature_model), str(tmp_path)]
    environment = os.environ | variables | QUICK_HEALTH_CHECKS
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = run.communicate(timeout=PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, errors[-3000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["killed"], "it lost another node than the one that was to be killed"
    assert (facts["lost"], facts["ready"]) == (1, 1), "the other worker did the lost one's work, for there was no room"
    assert facts["found"] == facts["expected"]
    assert facts["records_are_whole"]
