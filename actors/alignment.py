"""A whole run: start the actors, train, evaluate, export."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import Result, TrainingFailedError

from actors.crew import Crew, start_crew
from actors.evaluation import evaluate
from actors.failure import explain_failure
from actors.inputs import RunInputs
from actors.training import train
from actors.weights import WeightTicket, load_weights
from pipeline.adapter import export_adapter, load_flat_adapter
from pipeline.checkpoint import load_average
from pipeline.config import RunSettings
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.pictures import most_changed_picture
from pipeline.evaluation.tables import evaluation_text
from pipeline.images import save_png
from pipeline.model_card import adapter_card
from pipeline.policy import Policy
from pipeline.progress import ProgressReporter
from pipeline.report.evaluation_file import EVALUATION_FILE
from pipeline.run_folder import SUMMARY_FILE, write_json, write_text
from pipeline.training_record import training_record

logger = logging.getLogger(__name__)

# A tracker may have to send what is left before it ends.
TRACKERS_PATIENCE_S = 120.0

NO_EVALUATION = "None was made (evaluation.images=0)."


def align(settings: RunSettings, inputs: RunInputs, run_directory: Path, reporter: ProgressReporter) -> dict[str, Any]:
    """Align a model on the connected cluster and leave everything in `run_directory`, which exists.

    Iterations that the folder has checkpoints of are not made again.

    Returns:
        The summary, as written to summary.json.

    Raises:
        RunFailedError: an actor, a reward or the learner failed; the message is the reason.
    """
    started, succeeded = time.monotonic(), False
    crew = start_crew(settings, run_directory)
    try:
        logger.info("the actors of %s were asked for; it has %d iterations", settings.name, settings.iterations)
        with reporter.following(lambda first: ray.get(crew.journal.made_since.remote(first))):
            result = train(settings, inputs, crew, run_directory)
        trained = time.monotonic()
        logger.info("all iterations are done")
        ticket, held_out = ray.get(crew.store.current.remote()), inputs.prompts.held_out
        evaluation = _evaluate(settings, held_out, crew, ticket, run_directory) if settings.evaluation.images else None
        _export(settings, ticket, result, evaluation, run_directory)
        summary = {
            "name": settings.name,
            "iterations": ticket.iteration,
            "trajectories": ticket.iteration * settings.rollout.trajectories,
            "policy_version": ticket.version,
            "train_seconds": trained - started,
            "evaluation_seconds": time.monotonic() - trained,
            "last_iteration": ray.get(crew.journal.since.remote(ticket.iteration - 1))[-1],
            "evaluation": evaluation.rewards_as_json() if evaluation else None,
        }
        write_json(run_directory / SUMMARY_FILE, summary)
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


def _close(journal: Any, succeeded: bool) -> None:
    """Let the trackers end what they have begun; whatever they meet is no reason to lose the run's own outcome."""
    try:
        ray.get(journal.close.remote(succeeded), timeout=TRACKERS_PATIENCE_S)
    except RayError as error:
        logger.warning("the trackers were not told how the run ended: %s", error)


def _evaluate(
    settings: RunSettings, prompts: list[str], crew: Crew, ticket: WeightTicket, run_directory: Path
) -> Evaluation:
    evaluation = asyncio.run(evaluate(settings, prompts, crew.rollout_fleet, crew.reward_fleet, ticket))
    save_png(most_changed_picture(evaluation), run_directory / "before_after.png")
    write_json(run_directory / EVALUATION_FILE, evaluation.as_json())
    write_text(run_directory / "evaluation.md", evaluation_text(evaluation) + "\n")
    return evaluation


def _export(
    settings: RunSettings, ticket: WeightTicket, result: Result, evaluation: Evaluation | None, run_directory: Path
) -> None:
    """Write adapter/, and adapter_ema/ where an average was kept, as diffusers loads them."""
    on_cpu = settings.model.model_copy(update={"device": "cpu", "compile": False})
    policy = Policy.load(on_cpu, settings.lora, settings.sampling, settings.seed)
    record = training_record(settings)
    card = adapter_card(settings, ticket.version, evaluation_text(evaluation) if evaluation else NO_EVALUATION)
    load_flat_adapter(policy, load_weights(ticket))
    export_adapter(policy, run_directory / "adapter", card, record)
    if settings.learner.ema_decay is not None:
        assert result.checkpoint is not None, "the last iteration has a checkpoint"
        with result.checkpoint.as_directory() as directory:
            load_average(policy, Path(directory))
        export_adapter(policy, run_directory / "adapter_ema", card, record)
