"""A whole run: start the actors, train, evaluate, export."""

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError
from ray.train import TrainingFailedError

from actors.crew import Crew, start_crew
from actors.evaluation import evaluate, evaluation_aspects
from actors.failure import explain_failure
from actors.inputs import RunInputs
from actors.leasing import call_leased_sync
from actors.training import train
from actors.waiting import what_is_waited_for
from actors.weights import NothingPublishedError, WeightTicket, load_weights
from pipeline.adapter import CARD_FILE, BareAdapter, export_adapter, load_flat_adapter
from pipeline.checkpoint import load_average
from pipeline.checkpoint_store import checkpoints_of_run
from pipeline.config import RunSettings
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.folder import write_numbers
from pipeline.evaluation.pictures import most_changed_picture
from pipeline.evaluation.tables import evaluation_text
from pipeline.images import save_png
from pipeline.model_card import adapter_card
from pipeline.patience import Patience
from pipeline.progress import ProgressReporter
from pipeline.report.evaluation_file import EVALUATION_FILE
from pipeline.run_folder import SUMMARY_FILE, write_json, write_text
from pipeline.stopping import StopRequest
from pipeline.training_record import training_record

logger = logging.getLogger(__name__)

# A tracker may have to send what is left before it ends.
TRACKERS_PATIENCE_S = 120.0

NO_EVALUATION = "The run made none."
NOT_OF_THE_AVERAGE = "None was made of these weights, the moving average of those in `adapter`."

RESULT_ATTEMPTS = 3


def align(
    settings: RunSettings,
    inputs: RunInputs,
    run_directory: Path,
    reporter: ProgressReporter,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Align a model on the connected cluster and leave everything in `run_directory`, which exists.

    Iterations that the folder has checkpoints of are not made again.

    Args:
        stop: may ask the run to end early.

    Returns:
        The summary, as written to summary.json.

    Raises:
        RunFailedError: an actor, a reward or the learner failed; the message is the reason.
        RunStoppedError: the run was asked to stop, and has written a checkpoint.
        ValueError: the folder has checkpoints, and none is whole.
    """
    succeeded, stop = False, stop or StopRequest()
    if explanation := checkpoints_of_run(settings, run_directory).newest().explanation():
        logger.warning(explanation)
    crew = start_crew(settings, run_directory)
    try:
        stop.listen(crew.journal.request_stop.remote)
        logger.info("the actors of %s were asked for; it has %d iterations", settings.name, settings.iterations)
        waits_for = partial(what_is_waited_for, settings, crew)
        with reporter.following(lambda first: ray.get(crew.journal.made_since.remote(first)), waits_for):
            try_evaluation_rewards(settings, crew)
            train(settings, inputs, crew, run_directory)
        stop.raise_if_made()
        logger.info("all iterations are done")
        ticket = take_result(settings, inputs, crew, run_directory)
        summary = _conclude(settings, inputs.prompts.held_out, crew, run_directory, ticket)
        logger.info("evaluated and exported")
        succeeded = True
        return summary
    except (RayError, TrainingFailedError, RuntimeError) as error:
        failure = explain_failure(error, crew.journal, (crew.rollout_fleet, crew.reward_fleet))
        logger.info("ended early: %s", failure)
        raise failure from error
    finally:
        _close(crew.journal, succeeded)
        crew.dismiss()


def try_evaluation_rewards(settings: RunSettings, crew: Crew) -> None:
    """Let a reward actor load what the evaluation alone needs, rather than meet it when all iterations are done.

    Raises:
        Exception: what the reward's loading raises.
    """
    if settings.evaluation.images and settings.evaluation.rewards:
        call_leased_sync(crew.reward_fleet, "try_loading", settings.evaluation.rewards)


def _close(journal: Any, succeeded: bool) -> None:
    """Let the trackers end what they have begun; whatever they meet is no reason to lose the run's own outcome."""
    try:
        ray.get(journal.close.remote(succeeded), timeout=TRACKERS_PATIENCE_S)
    except RayError as error:
        logger.warning("the trackers were not told how the run ended: %s", error)


def take_result(settings: RunSettings, inputs: RunInputs, crew: Crew, run_directory: Path) -> WeightTicket:
    """What was learnt, held by the driver, for there is no learner left to publish it again if the store is lost."""
    for _ in range(RESULT_ATTEMPTS):
        try:
            ticket: WeightTicket = ray.get(crew.store.current.remote())
            return replace(ticket, refs=[ray.put(load_weights(ticket))])
        except (NothingPublishedError, ObjectLostError):
            logger.warning("the weight store was lost when all was learnt; the result comes from the last checkpoint")
            train(settings, inputs, crew, run_directory)
    raise RuntimeError(f"the weight store was lost {RESULT_ATTEMPTS} times in a row before the result was read from it")


def _conclude(
    settings: RunSettings, held_out: list[str], crew: Crew, run_directory: Path, ticket: WeightTicket
) -> dict[str, Any]:
    """Export and evaluate what was learnt; return the summary, which is written last."""
    trained, patience, evaluation = time.monotonic(), Patience(settings.checkpoint.retry_seconds), None
    # First what was learnt: an evaluation may yet fail.
    export = partial(_export, settings, ticket, run_directory)
    exported = patience.keep_trying(f"export the adapter into {run_directory}", export)
    if settings.evaluation.images:
        evaluation = _evaluate(settings, held_out, crew, ticket)
        card = adapter_card(settings, ticket.version, evaluation_text(evaluation))
        save = partial(_save_evaluation, evaluation, settings, run_directory, exported / CARD_FILE, card)
        patience.keep_trying(f"write into {run_directory}", save)
    last_iteration = ray.get(crew.journal.since.remote(ticket.iteration - 1))[-1]
    summary = {
        "name": settings.name,
        "iterations": ticket.iteration,
        "trajectories": ticket.iteration * settings.rollout.trajectories,
        "policy_version": ticket.version,
        "train_seconds": last_iteration["seconds_spent"],
        "evaluation_seconds": time.monotonic() - trained,
        "last_iteration": last_iteration,
        "evaluation": evaluation.rewards_as_json() if evaluation else None,
    }
    patience.keep_trying(f"write into {run_directory}", partial(write_json, run_directory / SUMMARY_FILE, summary))
    return summary


def _evaluate(settings: RunSettings, held_out: list[str], crew: Crew, ticket: WeightTicket) -> Evaluation:
    try:
        return asyncio.run(evaluate(settings, held_out, crew.rollout_fleet, crew.reward_fleet, ticket))
    except Exception as error:  # what a reward raises may be of any class
        raise RuntimeError("the final evaluation failed") from error


def _save_evaluation(
    evaluation: Evaluation, settings: RunSettings, run_directory: Path, card_file: Path, card: str
) -> None:
    save_png(most_changed_picture(evaluation), run_directory / "before_after.png")
    write_numbers(evaluation, settings.reward_labels, evaluation_aspects(settings), run_directory)
    write_json(run_directory / EVALUATION_FILE, evaluation.as_json())
    write_text(run_directory / "evaluation.md", evaluation_text(evaluation) + "\n")
    write_text(card_file, card)


def _export(settings: RunSettings, ticket: WeightTicket, run_directory: Path) -> Path:
    """Write adapter/, and adapter_ema/ where an average was kept, as diffusers loads them; return the former."""
    adapter = BareAdapter.make(settings.model.path, settings.lora, settings.model.revision)
    record, card = training_record(settings), adapter_card(settings, ticket.version, NO_EVALUATION)
    raw, averaged = run_directory / "adapter", run_directory / "adapter_ema"
    load_flat_adapter(adapter, load_weights(ticket))
    export_adapter(adapter, raw, card, record)
    if settings.learner.ema_decay is None:
        return raw
    newest = checkpoints_of_run(settings, run_directory).newest()
    assert newest.files is not None, "the last iteration has a checkpoint"
    if newest.skipped:
        logger.warning("adapter_ema is older than adapter: %s", newest.explanation())
    load_average(adapter, newest.files)
    export_adapter(adapter, averaged, adapter_card(settings, ticket.version, NOT_OF_THE_AVERAGE), record)
    return raw
