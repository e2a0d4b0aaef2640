"""Rollouts on a cluster that grows from nothing, loses nodes in the middle of an iteration, and shrinks again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_head import QUICK_HEALTH_CHECKS

from benchmarks.chaos.autoscaling_head import autoscaling_head

TESTS = Path(__file__).resolve().parent


@pytest.mark.slow
def test_rollouts_follow_the_nodes_and_lose_no_sample(tmp_path):
    variables = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    node = {"CPU": 1, "rollout": 1}
    with autoscaling_head(
        "v2", node, max_workers=3, idle_timeout_minutes=0.1, **variables, **QUICK_HEALTH_CHECKS
    ) as address:
        command = [sys.executable, str(TESTS / "elastic_run.py"), address, str(tmp_path / "facts.json")]
        done = subprocess.run(command, check=False, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    # Workers that wait bring nodes, and those that are asked for in the middle of an iteration take work of it.
    assert (facts["nodes_before"], facts["nodes_of_the_maximum"]) == (0, 3)
    assert facts["nodes_that_took_part"] == 3
    # Down to one in the middle of an iteration.
    assert facts["lost"] == 2
    assert len(facts["first_samples"]) == len(set(facts["first_samples"])) == 64
    assert len(facts["second_samples"]) == len(set(facts["second_samples"])) == 64
    # What nobody needed was given back, and was taken again when there was work.
    assert len(facts["third_samples"]) == len(set(facts["third_samples"])) == 64
    # A run that ends gives all of them back.
    assert facts["nodes_after"] == 0
