"""The paper's claims as experiments: `python jobs/claims.py --config configs/demo.yaml [section.key=value ...]`."""

import argparse
import sys
from pathlib import Path

from jobs.quiet import be_quiet, one_readable_message, resumable_by
from pipeline.claims import TABLES
from pipeline.run_lock import held_alone


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of a TailorPO run")
    parser.add_argument("--output", type=Path, default=Path("runs/claims"), help="folder that receives the tables")
    parser.add_argument(
        "--tables",
        type=_tables,
        default=TABLES,
        metavar="TABLE[,TABLE...]",
        help=f"which claims to look at: {', '.join(TABLES)}; by default all",
    )
    parser.add_argument("--samples", type=int, default=192, help="trajectories that order and guidance each measure")
    parser.add_argument("--iterations", type=int, default=16, help="iterations of each run of steps and strength")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Make the tables that are not made yet; a fault of the user's ends the job with one readable message."""
    be_quiet()
    options = parse_arguments(arguments)
    with one_readable_message(), resumable_by("the same command"), held_alone(options.output):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Check everything, then make one table after another; each is on the disk before the next begins.

    Raises:
        ValueError: a setting or a cluster with which a table cannot be made.
    """
    from actors.claims import check_folders, make_table
    from actors.cluster import connect, disconnect, refuse_fleeting_folder
    from actors.crew import check_room, cpus_of_all_workers
    from actors.failure import RunFailedError, note_failure
    from pipeline.claims.plan import ClaimsPlan
    from pipeline.config_loading import load_settings
    from pipeline.preflight import own_modules

    settings = load_settings(options.config, options.overrides)
    plan = ClaimsPlan(settings, options.samples, options.iterations, options.tables)
    plan.check()
    for folder in (options.output, Path(settings.output_dir)):
        refuse_fleeting_folder(folder)
    check_folders(plan)
    cluster = connect(cpus_of_all_workers(settings), own_modules=own_modules(settings))
    try:
        check_room(settings)
        for name in plan.tables:
            make_table(plan, name, options.output)
        print((options.output / "claims.md").read_text(encoding="utf-8"), end="")
    except RunFailedError as error:
        details = note_failure(error, options.output)
        sys.exit(
            f"error: {error.report}\n"
            "All that was done is kept; when the cause is gone, the same command goes on from there\n"
            f"Details: {details}; logs of every process: {cluster.log_directory}"
        )
    finally:
        disconnect(cluster)


def _tables(text: str) -> tuple[str, ...]:
    """Names between commas, in the order of `TABLES`."""
    names = text.split(",")
    for name in names:
        if name not in TABLES:
            raise argparse.ArgumentTypeError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    return tuple(name for name in TABLES if name in names)


if __name__ == "__main__":
    main()
