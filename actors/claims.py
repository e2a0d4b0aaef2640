"""The tables of the claims: measurements on the fleets of a run, and alignment runs, one after another."""

import functools
import json
import time
from pathlib import Path
from typing import Any

from actors.alignment import align
from actors.measuring import measure_on_base
from pipeline.claims.arm_results import arm_row
from pipeline.claims.arms import Arm, tailorpo_settings
from pipeline.claims.guided import guidance_rows, measure_guidance
from pipeline.claims.order import measure_orders, order_rows
from pipeline.claims.plan import ARMS, ClaimsPlan
from pipeline.claims.table_files import read_table, write_table
from pipeline.config import RunSettings
from pipeline.config_loading import dump_settings, load_settings
from pipeline.progress import ProgressReporter
from pipeline.rewards import training_scale
from pipeline.run_folder import MetricsFile, write_text

Rows = list[dict[str, Any]]


def make_table(plan: ClaimsPlan, name: str, output: Path) -> None:
    """Make a table and write it into `output`, unless an equal one lies there.

    Raises:
        ValueError: the folder of one of its runs holds another run.
        RunFailedError: an actor, a reward or a learner failed; the message is the reason.
    """
    inputs = plan.inputs(name)
    if (found := read_table(output, name)) is not None and found["inputs"] == inputs:
        print(f"{name}: made already, in {output}", flush=True)
        return
    started = time.monotonic()
    if name in ARMS:
        rows = [align_arm(arm) for arm in plan.arms(name)]
        seconds = sum(row["train_seconds"] + row["evaluation_seconds"] for row in rows)
    else:
        print(f"{name}: {plan.samples} samples", flush=True)
        rows = MEASUREMENTS[name](plan.measured(name), plan.samples, output)
        seconds = time.monotonic() - started
    write_table(output, name, {"num_steps": plan.settings.sampling.num_steps, "rows": rows, "seconds": seconds}, inputs)


def _orders(settings: RunSettings, samples: int, output: Path) -> Rows:
    probe = functools.partial(measure_orders, steps=settings.trained_grid_steps)
    return order_rows(measure_on_base(settings, probe, samples, output), settings.sampling.num_steps, settings.seed)


def _guidance(settings: RunSettings, samples: int, output: Path) -> Rows:
    method, scale = tailorpo_settings(settings), training_scale(settings)
    probe = functools.partial(measure_guidance, method=method, reward_scale=scale)
    return guidance_rows(measure_on_base(settings, probe, samples, output), settings.sampling.num_steps, settings.seed)


MEASUREMENTS = {"order": _orders, "guidance": _guidance}


def align_arm(arm: Arm) -> dict[str, Any]:
    """Make the run of an arm, or what is left of it, or nothing where it is finished; return what it shows.

    Raises:
        ValueError: its folder holds a run with other settings.
        RunFailedError: as `align`.
    """
    settings = arm.settings
    directory = Path(settings.output_dir) / settings.name
    config, summary = directory / "config.yaml", directory / "summary.json"
    check_arm(arm)
    if not config.is_file():
        write_text(config, dump_settings(settings))
    if not summary.is_file():
        print(f"{settings.name}: {arm.label}, results in {directory}", flush=True)
        align(settings, directory, ProgressReporter(settings.iterations))
    found = json.loads(summary.read_text(encoding="utf-8"))
    return arm_row(arm, found, MetricsFile(directory / "metrics.jsonl").read())


def check_arm(arm: Arm) -> None:
    """Refuse a folder that was made by other settings: its run would be taken for this one.

    Raises:
        ValueError: which folder.
    """
    directory = Path(arm.settings.output_dir) / arm.settings.name
    config = directory / "config.yaml"
    if config.is_file() and load_settings(config) != arm.settings:
        raise ValueError(
            f"{directory} holds a run with other settings; move it away, or give another output_dir=... to keep both"
        )
