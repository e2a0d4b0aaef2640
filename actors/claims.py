"""The tables of the claims: measurements on the fleets of a run, and alignment runs, one after another."""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from actors.measuring import measure_on_base
from actors.run_in_folder import describe_and_align
from pipeline.claims.arm_results import arm_row
from pipeline.claims.arms import Arm, tailorpo_settings
from pipeline.claims.guided import guidance_rows, measure_guidance
from pipeline.claims.order import measure_orders, order_rows
from pipeline.claims.plan import ARMS, ClaimsPlan
from pipeline.claims.table_files import read_table, write_page, write_table
from pipeline.config import RunSettings
from pipeline.config_loading import load_settings
from pipeline.rewards import training_scale
from pipeline.run_folder import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, MetricsFile
from pipeline.run_lock import held_alone

Rows = list[dict[str, Any]]


def make_table(plan: ClaimsPlan, name: str, output: Path) -> None:
    """Make a table and write it into `output`, unless an equal one lies there.

    Raises:
        RunFailedError: an actor, a reward or a learner failed; the message is the reason.
    """
    inputs = plan.inputs(name)
    if (found := read_table(output, name)) is not None and found["inputs"] == inputs:
        print(f"{name}: made already, in {output}", flush=True)
        write_page(output)  # an earlier job may have been killed before it did
        return
    started = time.monotonic()
    if name in ARMS:
        rows = [align_arm(arm) for arm in plan.arms(name)]
        seconds = sum(row["train_seconds"] + row["evaluation_seconds"] for row in rows)
    else:
        print(f"{name}: {plan.samples} samples", flush=True)
        rows = MEASUREMENTS[name](plan.measured(name), plan.samples, output)
        seconds = time.monotonic() - started
    settings = plan.settings
    result = {"configuration": settings.name, "seed": settings.seed, "num_steps": settings.sampling.num_steps}
    write_table(output, name, result | {"rows": rows, "seconds": seconds}, inputs)


def _orders(settings: RunSettings, samples: int, output: Path) -> Rows:
    probe = functools.partial(measure_orders, steps=settings.trained_grid_steps)
    return order_rows(measure_on_base(settings, probe, samples, output), settings.sampling.num_steps, settings.seed)


def _guidance(settings: RunSettings, samples: int, output: Path) -> Rows:
    method, scale = tailorpo_settings(settings), training_scale(settings)
    probe = functools.partial(measure_guidance, method=method, reward_scale=scale)
    return guidance_rows(measure_on_base(settings, probe, samples, output), settings.sampling.num_steps, settings.seed)


MEASUREMENTS = {"order": _orders, "guidance": _guidance}


def check_folders(plan: ClaimsPlan) -> None:
    """Refuse folders that were made by other settings: their runs would be taken for those of the tables.

    Raises:
        ValueError: which folder.
    """
    for arm in (arm for name in plan.tables if name in ARMS for arm in plan.arms(name)):
        config = _folder(arm) / CONFIG_FILE
        if config.is_file() and load_settings(config) != arm.settings:
            raise ValueError(
                f"{_folder(arm)} holds a run with other settings; move it away, or give another output_dir=... to keep "
                "both"
            )


def align_arm(arm: Arm) -> dict[str, Any]:
    """Make the run of an arm, or what is left of it, or nothing where it is finished; return what it shows.

    Raises:
        RunFailedError: as `align`.
        ValueError: another process works on its folder.
    """
    settings, directory = arm.settings, _folder(arm)
    summary = directory / SUMMARY_FILE
    with held_alone(directory):
        if not summary.is_file():
            print(f"{settings.name}: {arm.label}, results in {directory}", flush=True)
            describe_and_align(settings, directory, {"command": sys.argv})
    found = json.loads(summary.read_text(encoding="utf-8"))
    return arm_row(arm, found, MetricsFile(directory / METRICS_FILE).read())


def _folder(arm: Arm) -> Path:
    return Path(arm.settings.output_dir) / arm.settings.name
