"""Compare methods at an equal budget: `python jobs/compare.py --config configs/compare_demo.yaml [key=value ...]`."""

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jobs.quiet import be_quiet, one_readable_message, resumable_by
from pipeline.comparison.loading import (
    COMPARISON_FILE,
    begun_together,
    check_folders,
    divergence,
    is_finished,
    load_begun,
    load_comparison,
    note_divergence,
    open_folder,
)
from pipeline.comparison.outcome import Outcome, closing_error
from pipeline.comparison.plan import RUNS_FOLDER, Plan, PlannedRun, make_plan
from pipeline.config_loading import dump_settings
from pipeline.own_classes import look_in_the_working_directory
from pipeline.prompt_sets import PromptSets, load_prompt_sets
from pipeline.run_lock import held_alone
from pipeline.secrets import redact

Say = Callable[[str], None]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="YAML file of a new comparison")
    source.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with an interrupted comparison; finished runs stay as they are",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what every run costs, and exit")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the job; a fault of the user's ends it with one readable message."""
    be_quiet()
    look_in_the_working_directory()
    options = parse_arguments(arguments)
    with one_readable_message():
        plan = resolve_plan(options)
        check_plan(plan, load_prompt_sets(plan.folder) if options.resume else None)
        if options.dry_run:
            print_plan(plan)
        else:
            run(plan, resumes=options.resume is not None)


def resolve_plan(options: argparse.Namespace) -> Plan:
    """The runs of the comparison, and its folder.

    Raises:
        ValueError: settings that do not hold, a folder that exists already, or one that cannot be resumed.
    """
    if options.resume is not None:
        if options.overrides:
            raise ValueError("a comparison is resumed as it was; start a new one with --config to change settings")
        return make_plan(load_begun(options.resume), options.resume)
    comparison = load_comparison(options.config, options.overrides)
    folder = Path(comparison.output_dir) / comparison.name
    if not options.dry_run:
        refuse_existing(folder)
    return make_plan(comparison, folder)


def refuse_existing(folder: Path) -> None:
    """Refuse to begin a comparison where one lies.

    Raises:
        ValueError: there is a folder of that name.
    """
    if folder.exists():
        raise ValueError(f"the folder {folder} exists; continue it by --resume {folder}, or choose another name")


def check_plan(plan: Plan, kept: PromptSets | None) -> None:
    """Check every run, the prompts of the sweep, and whether all runs can be evaluated together.

    Args:
        kept: the prompts that lie in the folder of a comparison that is taken up, whatever has become of their source.

    Raises:
        ValueError: as the first run that is wrong would, with its label.
    """
    from actors.prompts import read_prompt_sets
    from pipeline.comparison.evaluation import check_evaluation_of_all, check_held_out
    from pipeline.comparison.sweep import sweep_prompts
    from pipeline.preflight import check_run

    for cell in plan.cells:
        try:
            check_run(cell.settings, kept)
        except ValueError as error:
            raise ValueError(f"variant {cell.label!r}: {error}") from None
    check_evaluation_of_all(plan)
    prompts = plan.cells[0].settings.prompts
    if kept is not None or not prompts.columns:
        found = kept or read_prompt_sets(prompts)
        check_held_out(plan, found.held_out)
        if plan.sweep_runs:
            sweep_prompts(plan, found)


def print_plan(plan: Plan) -> None:
    """The resolved comparison, and what its runs cost."""
    from pipeline.comparison.overview import overview

    print(dump_settings(plan.comparison))
    print(overview(plan), end="")


def run(plan: Plan, resumes: bool) -> None:
    """Choose learning rates, make the runs that are compared, and write the report.

    Raises:
        ValueError: a cluster that cannot hold a run, or folders that hold other runs.
    """
    # torch, diffusers and Ray take seconds to import; a misspelt key should not have to wait for them.
    from actors.cluster import refuse_fleeting_folder
    from pipeline.comparison.model_commit import at_one_commit
    from pipeline.comparison.reporting import write_comparison_report
    from pipeline.comparison.stopwatch import Stopwatch

    refuse_fleeting_folder(plan.folder)
    with held_alone(plan.folder):
        if not resumes:
            # Another process may have begun it while this one waited.
            refuse_existing(plan.folder)
            plan = at_one_commit(plan)
        stopwatch = Stopwatch(plan.folder)

        def note_and_say(text: str) -> None:
            stopwatch.note()
            say(text)

        command = f"python jobs/compare.py --resume {shlex.quote(str(plan.folder))}"
        with resumable_by(command, begun=(plan.folder / COMPARISON_FILE).is_file):
            outcome = make_and_evaluate(plan, resumes, note_and_say)
        stopwatch.note()
        report = write_comparison_report(plan)
        error = closing_error(plan, outcome, report)
    if error is not None:
        sys.exit(error)
    say(f"report in {report}")


def make_and_evaluate(plan: Plan, resumes: bool, tell: Say) -> Outcome:
    """Everything that takes a cluster.

    Args:
        tell: takes a line about what goes on.

    Raises:
        ValueError: a cluster that cannot hold a run, a reward that cannot be loaded, or folders that hold other runs.
    """
    from actors.cluster import connect, disconnect, refuse_relative_folder
    from actors.crew import check_room, cpus_of_all_workers
    from actors.prompts import prompts_of_run
    from actors.reward_trial import try_rewards
    from actors.room import check_room_at_once, runs_with_room
    from pipeline.comparison.evaluation import check_held_out, evaluation_to_come
    from pipeline.comparison.pairs_of_cells import hold_to_their_pairs
    from pipeline.comparison.sweep import chosen_learning_rates, read_sweep, write_sweep_prompts
    from pipeline.preflight import own_modules
    from pipeline.prompt_sets import save_prompt_sets

    settings = [cell.settings for cell in plan.cells]
    cpus = max(map(cpus_of_all_workers, settings)) * (plan.comparison.parallel or 1)
    modules = sorted({module for one in settings for module in own_modules(one)})
    cluster = connect(cpus, own_modules=modules)
    try:
        refuse_relative_folder(cluster, plan.folder)
        for one in settings:
            check_room(one)
        for together in begun_together(plan, plan.comparison.parallel) if plan.comparison.parallel else ():
            check_room_at_once([one.settings for one in together])
        if not resumes:
            to_come = evaluation_to_come(plan)
            say(f"{plan.comparison.name}: loading the {len(to_come.rewards)} rewards of its evaluation, once")
            try_rewards(to_come)
            open_folder(plan)
        prompts = prompts_of_run(settings[0].prompts, plan.folder)
        check_held_out(plan, prompts.held_out)
        save_prompt_sets(prompts, settings[0].prompts, plan.folder)
        if plan.sweep_runs:
            write_sweep_prompts(plan, prompts)
        at_once = plan.comparison.parallel or runs_with_room(settings, plan.most_runs_of_a_phase)
        tell(f"{plan.comparison.name}: Ray {cluster.mode}, at most {at_once} at once, results in {plan.folder}")
        circumstances = {"cluster": dataclasses.asdict(cluster), "command": sys.argv}
        hold_to_their_pairs(plan.sweep_runs)
        failed = carry_out_phase("sweep", plan.sweep_runs, at_once, circumstances, None, tell)
        runs = plan.runs(chosen_learning_rates(plan, read_sweep(plan)))
        hold_to_their_pairs([*plan.sweep_runs, *runs])
        failed |= carry_out_phase("runs", runs, at_once, circumstances, prompts, tell)
        evaluation = evaluate_phase(plan, [run for run in runs if is_finished(run)], tell)
    finally:
        disconnect(cluster)
    return Outcome(failed, evaluation)


def carry_out_phase(
    phase: str,
    runs: Sequence[PlannedRun],
    at_once: int,
    circumstances: dict[str, Any],
    prompts: PromptSets | None,
    tell: Say,
) -> dict[Path, str]:
    """Make the runs of a phase that are not over; return the folders of those that failed, each with the reason.

    Args:
        prompts: those of the comparison; None where each run has its own.
        tell: takes a line about every run and iteration.

    Raises:
        ValueError: a folder that holds another run.
    """
    from actors.comparison import align_in_folder, carry_out

    check_folders(runs)
    finished = sum(map(is_finished, runs))
    if runs:
        tell(f"{phase}: {len(runs)} in all" + (f", {finished} of them are finished" if finished else ""))
    return carry_out(runs, partial(align_in_folder, circumstances, prompts), at_once, tell)


def evaluate_phase(plan: Plan, runs: Sequence[PlannedRun], tell: Say) -> str | None:
    """Evaluate the adapters of `runs` that are not yet evaluated, into the runs' own folders.

    A run whose adapter draws what is no image has diverged, at its very end.

    Returns:
        Why that failed, which leaves a report to be written all the same; None where it did not.
    """
    from actors.adapter_evaluation import UnscoredAdaptersError, evaluate_adapters
    from actors.failure import RunFailedError, note_failure
    from pipeline.comparison.evaluation import evaluation_settings
    from pipeline.evaluation.preflight import check_evaluation

    runs = [run for run in runs if divergence(run) is None]
    if not runs:
        return None
    try:
        settings = evaluation_settings(plan, runs)
        check_evaluation(settings)
        tell(f"evaluation: {len(runs)} adapters")
        evaluate_adapters(settings, plan.folder / RUNS_FOLDER, tell)
    except UnscoredAdaptersError as error:
        for label, reason in error.without_images.items():
            note_divergence(plan.folder / RUNS_FOLDER / label, reason)
        if error.without_scores:
            return f"{error}; details: {note_failure(error, plan.folder)}"
        return evaluate_phase(plan, runs, tell)
    except (RunFailedError, ValueError, OSError) as error:
        failure = error if isinstance(error, RunFailedError) else RunFailedError(redact(str(error)))
        return f"{failure}; details: {note_failure(failure, plan.folder)}"
    return None


def say(text: str) -> None:
    """A line with the time of the day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
