"""Align a diffusion model with a reward: `python jobs/align.py --config configs/demo.yaml [section.key=value ...]`."""

import argparse
import dataclasses
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from jobs.quiet import be_quiet, one_readable_message
from pipeline.config import RunSettings
from pipeline.config_loading import dump_settings, load_settings
from pipeline.run_folder import CONFIG_FILE, LOG_FILE


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="YAML file of a new run")
    source.add_argument(
        "--resume", type=Path, metavar="RUN_DIR", help="take up an interrupted run where its checkpoint is"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and its arithmetic, and exit"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the job; a fault of the user's ends it with one readable message."""
    be_quiet()
    options = parse_arguments(arguments)
    with one_readable_message():
        settings, run_directory = resolve_run(options)
        if options.dry_run:
            print_plan(settings)
        else:
            run(settings, run_directory)


def resolve_run(options: argparse.Namespace) -> tuple[RunSettings, Path]:
    """The settings and the folder of the run.

    Raises:
        ValueError: settings that do not hold, a folder that exists already, or one that cannot be resumed.
    """
    if options.resume is not None:
        if options.overrides:
            raise ValueError("a run is resumed as it was; start a new one with --config to change settings")
        config = options.resume / CONFIG_FILE
        if not config.is_file():
            raise ValueError(f"{options.resume} is no run folder: it has no {CONFIG_FILE}")
        return load_settings(config), options.resume
    settings = load_settings(options.config, options.overrides)
    run_directory = Path(settings.output_dir) / settings.name
    if run_directory.exists() and not options.dry_run:
        raise ValueError(
            f"the run folder {run_directory} exists; continue it by --resume {run_directory}, or choose another name"
        )
    return settings, run_directory


def print_plan(settings: RunSettings) -> None:
    """The resolved configuration, and how much work it is.

    Raises:
        ValueError: as a real run would, before its first actor.
    """
    from pipeline.arithmetic import run_arithmetic
    from pipeline.preflight import check_run

    check_run(settings)
    print(dump_settings(settings))
    print(yaml.safe_dump({"arithmetic": dataclasses.asdict(run_arithmetic(settings))}, sort_keys=False), end="")


def run(settings: RunSettings, run_directory: Path) -> None:
    """Check everything, then align.

    Raises:
        ValueError: a setting or a cluster with which the run cannot succeed.
    """
    # torch, diffusers and Ray take seconds to import; a misspelt key should not have to wait for them.
    from actors.cluster import connect, disconnect, refuse_fleeting_folder
    from actors.crew import check_room, cpus_of_all_workers
    from actors.failure import RunFailedError, failure_of, note_failure
    from pipeline.patience import StorageError
    from pipeline.preflight import check_run, own_modules
    from pipeline.stopping import RunStoppedError

    truncated = check_run(settings)
    refuse_fleeting_folder(run_directory)
    cluster = connect(cpus_of_all_workers(settings), own_modules=own_modules(settings))
    circumstances = {"cluster": dataclasses.asdict(cluster), "command": sys.argv, "truncated_prompts": truncated}
    try:
        check_room(settings)
        carry_out(settings, run_directory, circumstances)
    except RunStoppedError as stopped:
        tell(f"{stopped}; continue with: {resume_command(run_directory)}")
        sys.exit(stopped.exit_code)
    except (RunFailedError, StorageError) as error:
        failure = failure_of(error)
        details = note_failure(failure, run_directory)
        sys.exit(
            f"error: {failure.report}\n"
            f"All that was done is kept; when the cause is gone, continue with --resume {run_directory}\n"
            f"Details: {details}, {run_directory / LOG_FILE}; logs of every process: {cluster.log_directory}"
        )
    finally:
        disconnect(cluster)


def carry_out(settings: RunSettings, run_directory: Path, circumstances: dict[str, Any]) -> None:
    """Describe the run in its folder, align, and report.

    Args:
        circumstances: what environment.json says beside versions and hardware.

    Raises:
        RunFailedError, RunStoppedError, StorageError: it ended early.
        ValueError: prompts, pairs of images or checkpoints that cannot be read.
    """
    from actors.alignment import align
    from actors.inputs import inputs_of_run, save_inputs
    from pipeline.patience import Patience
    from pipeline.preflight import warn_of_long_prompts
    from pipeline.progress import ProgressReporter
    from pipeline.report.writing import write_report
    from pipeline.reward_roles import reward_line
    from pipeline.run_description import describe_run
    from pipeline.stopping import StopRequest, work_until_stopped

    inputs = inputs_of_run(settings, run_directory)
    if settings.prompts.columns:
        prompts = [*inputs.prompts.train, *inputs.prompts.held_out]
        circumstances = circumstances | {"truncated_prompts": warn_of_long_prompts(settings.model.path, prompts)}
    patience = Patience(settings.checkpoint.retry_seconds)

    def describe() -> None:
        describe_run(settings, run_directory, circumstances)
        save_inputs(inputs, settings, run_directory)

    patience.keep_trying(f"write into {run_directory}", describe)
    print(f"{settings.name}: Ray {circumstances['cluster']['mode']}, results in {run_directory}", flush=True)
    if len(settings.rewards) > 1:
        print(reward_line(settings), flush=True)
    reporter = ProgressReporter(settings.iterations, budget_seconds=settings.budget_seconds)

    def align_and_report(stop: StopRequest) -> tuple[dict, Path]:
        summary = align(settings, inputs, run_directory, reporter, stop)
        write = partial(write_report, [run_directory], run_directory)
        return summary, patience.keep_trying(f"write the report into {run_directory}", write)

    summary, report = work_until_stopped(align_and_report, settings.checkpoint.grace_seconds, tell)
    print_summary(summary, run_directory, report)


def resume_command(run_directory: Path) -> str:
    """What takes a run up again."""
    return f"python jobs/align.py --resume {shlex.quote(str(run_directory))}"


def tell(text: str) -> None:
    """Print a line that is not lost when the process is killed next."""
    print(text, file=sys.stderr, flush=True)


def print_summary(summary: dict, run_directory: Path, report: Path) -> None:
    """The held-out table and where things lie."""
    minutes = (summary["train_seconds"] + summary["evaluation_seconds"]) / 60
    print(f"aligned in {minutes:.1f} minutes; adapter in {run_directory / 'adapter'}, report in {report}")
    table = run_directory / "evaluation.md"
    if table.is_file():
        print(table.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
