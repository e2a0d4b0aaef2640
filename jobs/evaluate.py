"""Compare a base model with adapters: `python jobs/evaluate.py --adapter DIR --prompts SOURCE --rewards NAME ...`."""

import argparse
import dataclasses
import sys
from pathlib import Path

import yaml

from jobs.quiet import be_quiet, one_readable_message, resumable_by
from pipeline.evaluation.command_line import settings_from
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.run_lock import held_alone


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--adapter",
        required=True,
        action="append",
        metavar="[NAME=]DIR",
        help="a LoRA in safetensors that diffusers loads: directory, file or hub id; again for more of them",
    )
    parser.add_argument("--prompts", required=True, metavar="SOURCE", help="animals, demo, a text file or a data set")
    parser.add_argument("--prompt-column", metavar="NAME", help="the column of a data set that holds the prompts")
    parser.add_argument(
        "--rewards",
        required=True,
        nargs="+",
        metavar="NAME[=PATH]",
        help="rewards of docs/rewards.md, at least one that no adapter was trained on; the first picks the pictures",
    )
    parser.add_argument("--model", metavar="PATH", help="base model; by default the one the adapters were trained on")
    parser.add_argument("--images-per-prompt", type=int, default=5, metavar="N", help="5, as in the paper")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="by default runs/evaluations/ and the adapters' names"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the settings, and exit")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        dest="overrides",
        metavar="section.key=value",
        help="any other setting of docs/configuration.md, Settings of an evaluation",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the job; a fault of the user's ends it with one readable message."""
    be_quiet()
    options = parse_arguments(arguments)
    with one_readable_message(), resumable_by("the same command"):
        settings = settings_from(
            options.adapter,
            options.prompts,
            options.prompt_column,
            options.rewards,
            options.model,
            options.images_per_prompt,
            options.overrides,
        )
        labels = "_".join(adapter.label for adapter in settings.adapters)
        output = options.output or Path("runs") / "evaluations" / labels
        if options.dry_run:
            print_plan(settings)
        else:
            with held_alone(output):
                run(settings, output)


def print_plan(settings: AdapterEvaluationSettings) -> None:
    """The resolved settings, and how many images are drawn.

    Raises:
        ValueError: as a real evaluation would, before its first actor.
    """
    from pipeline.evaluation.preflight import check_evaluation
    from pipeline.generation import drift_steps
    from pipeline.prompts import load_held_out_prompts

    check_evaluation(settings)
    images, steps, adapters = settings.images_per_prompt, settings.sampling.num_steps, len(settings.adapters)
    # A call for each step of every model, and for each adapter those of the base model that the drift takes.
    calls = images * (steps * (1 + adapters) + len(drift_steps(steps)) * adapters)
    if isinstance(settings.prompts, str):
        prompts = len(load_held_out_prompts(settings.prompts))
        arithmetic = {"images_per_model": prompts * images, "network_calls": prompts * calls}
    else:
        arithmetic = {"images_per_prompt_and_model": images, "network_calls_per_prompt": calls}
    plan = settings.model_dump(mode="json") | {"arithmetic": arithmetic}
    print(yaml.safe_dump(plan, sort_keys=False, allow_unicode=True), end="")


def run(settings: AdapterEvaluationSettings, output: Path) -> None:
    """Check everything, then draw, compare, and print the tables.

    Raises:
        ValueError: a setting or a cluster with which the evaluation cannot succeed.
    """
    # Ray takes seconds to import; a misspelt key should not have to wait for it.
    from actors.adapter_evaluation import check_room_for_evaluation, cpus_of_evaluation, evaluate_adapters
    from actors.cluster import connect, disconnect, refuse_fleeting_folder
    from actors.failure import RunFailedError, note_failure
    from pipeline.environment import describe_environment
    from pipeline.evaluation.preflight import check_evaluation
    from pipeline.preflight import own_modules_of
    from pipeline.report.writing import write_evaluation_report
    from pipeline.run_folder import write_json
    from pipeline.secrets import redact_values

    truncated = check_evaluation(settings)
    refuse_fleeting_folder(output)
    cluster = connect(cpus_of_evaluation(settings), own_modules=own_modules_of(settings.rewards))
    try:
        check_room_for_evaluation(settings)
        print(f"Ray {cluster.mode}, results in {output}", flush=True)
        environment = describe_environment() | {
            "cluster": dataclasses.asdict(cluster),
            "command": sys.argv,
            # Those of a data set are counted in a warning when they have been read.
            "truncated_prompts": truncated if isinstance(settings.prompts, str) else None,
        }
        evaluate_adapters(settings, output, lambda line: print(line, flush=True))
        write_json(output / "environment.json", redact_values(environment))
        print(f"report in {write_evaluation_report(output, output)}")
        print((output / "evaluation.md").read_text(encoding="utf-8"), end="")
    except RunFailedError as error:
        details = note_failure(error, output)
        sys.exit(
            f"error: {error.report}\n"
            "Adapters that are through are kept; when the cause is gone, the same command goes on with the others\n"
            f"Details: {details}; logs of every process: {cluster.log_directory}"
        )
    finally:
        disconnect(cluster)


if __name__ == "__main__":
    main()
