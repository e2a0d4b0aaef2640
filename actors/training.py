"""One TorchTrainer runs all iterations; the dataset it is given makes fresh rollouts each time it is read."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train import ControllerError, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from actors.dataset import rollout_dataset
from actors.failure import LastingFailureError, root_cause
from actors.inputs import RunInputs
from actors.liveness import DEATHS
from actors.logs import log_in_actor
from pipeline.checkpoint_store import CheckpointStore, checkpoints_of_run
from pipeline.config import RunSettings
from pipeline.failure_report import note_of
from pipeline.patience import StorageError
from pipeline.redacted_errors import errors_without_secrets

if TYPE_CHECKING:
    from actors.crew import Crew

logger = logging.getLogger(__name__)

# report() returns when the controller has polled it; by default it polls every two seconds.
CONTROLLER_POLL_SECONDS = "0.2"

# After a node was lost an elastic learner asks for as many workers as before until this is over: Ray Train learns every
# 20 seconds what the cluster has left. Asking again, for fewer or as many, costs nothing; by default it does after 60.
PLACEMENT_SECONDS = "25"

# Defects of settings, data or code, as opposed to machines that come and go.
LASTING_ERRORS = (ValueError, TypeError, AssertionError, LookupError, AttributeError)


@dataclass(frozen=True)
class TrainLoopConfig:
    """What every learner worker is told: the settings, and the actors it talks to."""

    settings: RunSettings
    sample_prompts: list[str]
    store: Any
    journal: Any
    checkpoints: CheckpointStore
    rollout_fleet: Any
    reward_fleet: Any


def train(settings: RunSettings, inputs: RunInputs, crew: Crew, run_directory: Path) -> None:
    """Run every iteration that comes after the newest whole checkpoint of `run_directory`.

    Ray Train replaces a learner worker that dies and takes the run up at its last checkpoint; if Ray Train's own
    controller dies, another one does the same. What a further attempt would meet again ends the run at once.

    Raises:
        LastingFailureError: a rollout failed, or the learner did, for a reason that lies in settings, data or code.
        ray.train.TrainingFailedError: learner workers failed more often than `learner.max_restarts`.
        RayActorError, OutOfMemoryError: the controller did, or workers while it started them.
    """
    # Ray Train would move its workers to another folder, where the configuration's relative paths mean nothing.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", CONTROLLER_POLL_SECONDS)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", PLACEMENT_SECONDS)
    for restarts_left in reversed(range(settings.learner.max_restarts + 1)):
        try:
            # Ray Train is told of no checkpoint, and what else it keeps of a run is of no use after it.
            with tempfile.TemporaryDirectory() as scratch:
                _trainer(settings, inputs, crew, checkpoints_of_run(settings, run_directory), scratch).fit()
            break
        except (*DEATHS, ControllerError) as error:
            # A worker that dies while its loop is handed to it is none of the failures that the controller restarts.
            lost = error.controller_failure if isinstance(error, ControllerError) else error
            if not (isinstance(lost, DEATHS) and restarts_left):
                raise
            logger.warning("Ray Train's controller was lost, and another one takes the run up: %s", error)
    if failures := ray.get(crew.journal.noted_failures.remote()):
        raise LastingFailureError(failures[0].reason)


def _trainer(
    settings: RunSettings, inputs: RunInputs, crew: Crew, checkpoints: CheckpointStore, scratch: str
) -> TorchTrainer:
    learner = settings.learner
    fewest, most = min(learner.worker_counts), max(learner.worker_counts)
    num_workers: Any = (fewest, most) if fewest < most else most
    dataset = rollout_dataset(settings, inputs.batches, crew.rollout_fleet, crew.store, crew.journal)
    return TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": TrainLoopConfig(
                settings=settings,
                sample_prompts=inputs.prompts.held_out,
                store=crew.store,
                journal=crew.journal,
                checkpoints=checkpoints,
                rollout_fleet=crew.rollout_fleet,
                reward_fleet=crew.reward_fleet,
            )
        },
        # NCCL moves no CPU tensors, and the counts and hashes that workers compare are on the CPU.
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if learner.num_gpus else "gloo",
            # One worker waits for another no less long than that may take.
            timeout_s=max(TorchConfig.timeout_s, math.ceil(learner.timeout_seconds)),
        ),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=learner.num_gpus > 0,
            resources_per_worker={"CPU": learner.num_cpus, "GPU": learner.num_gpus},
        ),
        run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=learner.max_restarts)),
        datasets={"train": dataset},
        dataset_config=DataConfig(execution_options=dataset.context.execution_options),
    )


def _train_worker(loop_config: dict[str, Any]) -> None:
    # Ray Train's controller imports this module too, and needs no networks.
    import torch

    from actors.fleet_state import FleetError
    from actors.learner import train_loop
    from pipeline.optimiser import NonFiniteGradientError
    from pipeline.staleness import StaleRecordsError
    from pipeline.tracking.base import TrackerError

    config: TrainLoopConfig = loop_config["config"]
    if ray.get(config.journal.noted_failures.remote()):
        # Ray Train cannot tell a defect from a lost machine and started this worker anew; the driver will report it.
        return
    worker = f"learner-{ray.train.get_context().get_world_rank()}"
    log_in_actor("learner", worker, config.journal.log.remote)
    # A GPU's memory does not grow between attempts.
    run_errors = (FleetError, NonFiniteGradientError, StaleRecordsError, StorageError, TrackerError)
    lasting = (*LASTING_ERRORS, *run_errors, torch.OutOfMemoryError)
    try:
        with errors_without_secrets():
            train_loop(config)
    except Exception as error:
        logger.exception("the learner failed")
        if isinstance(error, lasting):
            ray.get(config.journal.note_failure.remote(note_of(root_cause(error), f"in {worker}")))
        raise
