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
from pipeline.config_loading import dump_settings, load_settings, parse_settings
from pipeline.object_storage import (
    ONLY_ADDED_TO,
    Mirror,
    exists,
    is_object_storage,
    read_text,
    working_folder,
)
from pipeline.own_classes import look_in_the_working_directory
from pipeline.patience import Patience, StorageError
from pipeline.run_folder import CONFIG_FILE, LOG_FILE
from pipeline.stopping import StopRequest


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="YAML file of a new run")
    source.add_argument(
        "--resume", metavar="RUN_DIR", help="take up an interrupted run, a path or a URI, where its checkpoint is"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and its arithmetic, and exit"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the job; a fault of the user's ends it with one readable message."""
    be_quiet()
    look_in_the_working_directory()
    options = parse_arguments(arguments)
    with one_readable_message():
        settings, location = resolve_run(options)
        if options.dry_run:
            print_plan(settings)
        else:
            run(settings, location, begins=options.resume is None)


def resolve_run(options: argparse.Namespace) -> tuple[RunSettings, str]:
    """The settings of the run, and where its folder is: a path or the URI of object storage.

    Raises:
        ValueError: settings that do not hold, a folder that exists already, or one that cannot be resumed.
    """
    if options.resume is not None:
        if options.overrides:
            raise ValueError("a run is resumed as it was; start a new one with --config to change settings")
        return resume_settings(options.resume)
    settings = load_settings(options.config, options.overrides)
    if not options.dry_run:
        refuse_existing(settings.location)
    return settings, settings.location


def refuse_existing(location: str) -> None:
    """Refuse to begin a run where one lies.

    Raises:
        ValueError: there is a folder of that name, or in a bucket a run.
    """
    # In a bucket a run that was killed before it had its configuration there has left at most an empty folder.
    if exists(f"{location}/{CONFIG_FILE}" if is_object_storage(location) else location):
        raise ValueError(
            f"the run folder {location} exists; continue it by --resume {location}, or choose another name"
        )


def resume_settings(folder: str) -> tuple[RunSettings, str]:
    """The settings that lie in a run folder, and where it is.

    Raises:
        ValueError: it is no run folder.
    """
    location = folder.rstrip("/")
    config = f"{location}/{CONFIG_FILE}"
    if not exists(config):
        raise ValueError(f"{location} is no run folder: it has no {CONFIG_FILE}")
    # The folder may be a copy of the one that its settings name, and is the one to work on.
    if is_object_storage(location):
        settings = parse_settings(yaml.safe_load(read_text(config)))
        output_dir, _, name = location.rpartition("/")
    else:
        settings = load_settings(Path(config))
        if not is_object_storage(settings.output_dir):
            return settings, location
        here = Path(location).resolve()
        output_dir, name = str(here.parent), here.name
    return settings.model_copy(update={"output_dir": output_dir, "name": name}), location


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


def run(settings: RunSettings, location: str, begins: bool) -> None:
    """Check everything, then align.

    Args:
        begins: whether it is a new run.

    Raises:
        ValueError: a setting or a cluster with which the run cannot succeed.
    """
    # torch, diffusers and Ray take seconds to import; a misspelt key should not have to wait for them.
    from actors.cluster import connect, disconnect, refuse_fleeting_folder
    from actors.crew import check_room, cpus_of_all_workers
    from pipeline.hub_revision import at_its_commit
    from pipeline.preflight import check_run, own_modules
    from pipeline.prompt_sets import load_prompt_sets

    truncated = 0
    if begins:
        truncated = check_run(settings)
        settings = settings.model_copy(update={"model": at_its_commit(settings.model)})
    if not is_object_storage(location):
        refuse_fleeting_folder(Path(location))
    with working_folder(location, settings.checkpoint.retry_seconds) as run_directory:
        if begins:
            refuse_existing(location)  # again, for another process may have begun it while this one waited for its end
        else:
            truncated = check_run(settings, load_prompt_sets(run_directory))
        cluster = connect(cpus_of_all_workers(settings), own_modules=own_modules(settings))
        circumstances = {"cluster": dataclasses.asdict(cluster), "command": sys.argv, "truncated_prompts": truncated}
        try:
            check_room(settings)
            carry_out(settings, run_directory, location, circumstances)
        finally:
            disconnect(cluster)


def carry_out(settings: RunSettings, run_directory: Path, location: str, circumstances: dict[str, Any]) -> None:
    """Align and report; where it ends early, end the process with the reason and how to go on.

    Args:
        run_directory: where the run writes; `location`, or a copy of what is there.
        circumstances: what environment.json says beside versions and hardware.

    Raises:
        ValueError: prompts, pairs of images or checkpoints that cannot be read.
    """
    from actors.failure import RunFailedError, failure_of, note_failure
    from pipeline.stopping import RunStoppedError, work_until_stopped

    try:
        prepare_and_align = partial(align_and_report, settings, run_directory, location, circumstances)
        work_until_stopped(prepare_and_align, settings.checkpoint.grace_seconds, tell)
    except RunStoppedError as stopped:
        tell(f"{stopped}; {how_to_go_on(run_directory, location)}")
        sys.exit(stopped.exit_code)
    except (RunFailedError, StorageError) as error:
        failure = failure_of(error)
        details = str(note_failure(failure, run_directory)).replace(str(run_directory), location)
        tell(
            f"error: {failure.report}\n"
            f"All that was done is kept; when the cause is gone, {how_to_go_on(run_directory, location)}\n"
            f"Details: {details}, {location}/{LOG_FILE}; logs of every process: "
            f"{circumstances['cluster']['log_directory']}"
        )
        sys.exit(1)


def align_and_report(
    settings: RunSettings, run_directory: Path, location: str, circumstances: dict[str, Any], stop: StopRequest
) -> None:
    """The work of a run, which may be asked to stop.

    Raises:
        RunFailedError, RunStoppedError, StorageError: it ended early.
        ValueError: as `carry_out`.
    """
    from actors.alignment import align
    from actors.inputs import inputs_of_run, save_inputs
    from pipeline.preflight import check_scorable, warn_of_long_prompts
    from pipeline.progress import ProgressReporter
    from pipeline.report.writing import write_report
    from pipeline.reward_roles import reward_line
    from pipeline.run_description import describe_run

    inputs = inputs_of_run(settings, run_directory)
    if settings.prompts.columns:
        check_scorable(settings, inputs.prompts.held_out)
        prompts = [*inputs.prompts.train, *inputs.prompts.held_out]
        circumstances = circumstances | {"truncated_prompts": warn_of_long_prompts(settings.model, prompts)}

    def describe() -> None:
        describe_run(settings, run_directory, circumstances)
        save_inputs(inputs, settings, run_directory)

    patience = Patience(settings.checkpoint.retry_seconds)
    patience.keep_trying(f"write into {run_directory}", describe)
    if is_object_storage(location):
        # From here on the run can be resumed; the learner, and with it the journal's first push, may be long to come.
        Mirror(run_directory, location, patience, leave_out=ONLY_ADDED_TO).push()
    print(f"{settings.name}: Ray {circumstances['cluster']['mode']}, results in {location}", flush=True)
    if len(settings.rewards) > 1:
        print(reward_line(settings), flush=True)
    reporter = ProgressReporter(settings.iterations, budget_seconds=settings.budget_seconds)
    summary = align(settings, inputs, run_directory, reporter, stop)
    write = partial(write_report, [run_directory], run_directory)
    report = patience.keep_trying(f"write the report into {run_directory}", write)
    print_summary(summary, run_directory, location, report.name)


def how_to_go_on(run_directory: Path, location: str) -> str:
    """What takes a run up again; one that has no configuration in its folder yet can only be begun anew."""
    if (run_directory / CONFIG_FILE).is_file():
        return f"continue with: python jobs/align.py --resume {shlex.quote(location)}"
    removing = "" if is_object_storage(location) else f"remove {location}, if it is there, and "
    return f"{removing}begin again: nothing was made yet"


def tell(text: str) -> None:
    """Print a line that is not lost when the process is killed next."""
    print(text, file=sys.stderr, flush=True)


def print_summary(summary: dict[str, Any], run_directory: Path, location: str, report: str) -> None:
    """The held-out table and where things lie."""
    minutes = (summary["train_seconds"] + summary["evaluation_seconds"]) / 60
    print(
        f"aligned in {minutes:.1f} minutes of iterations and evaluation; adapter in {location}/adapter, "
        f"report in {location}/{report}"
    )
    table = run_directory / "evaluation.md"
    if table.is_file():
        print(table.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
