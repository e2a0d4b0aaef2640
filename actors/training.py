"""One TorchTrainer runs all iterations; the dataset it is given makes fresh rollouts each time it is read."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import CheckpointConfig, DataConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from actors.dataset import rollout_dataset
from actors.inputs import RunInputs
from actors.logs import log_in_actor
from pipeline.config import RunSettings
from pipeline.run_folder import CHECKPOINTS_FOLDER

if TYPE_CHECKING:
    from actors.crew import Crew

logger = logging.getLogger(__name__)

# report() returns when the controller has polled it; by default it polls every two seconds.
CONTROLLER_POLL_SECONDS = "0.2"


@dataclass(frozen=True)
class TrainLoopConfig:
    """What every learner worker is told: the settings, and the actors it talks to."""

    settings: RunSettings
    sample_prompts: list[str]
    store: Any
    journal: Any
    rollout_fleet: Any
    reward_fleet: Any


def train(settings: RunSettings, inputs: RunInputs, crew: Crew, run_directory: Path) -> ray.train.Result:
    """Run every iteration that `run_directory` has no checkpoint of yet.

    Raises:
        ray.train.TrainingFailedError: a learner worker failed, or a rollout or a reward it asked for.
    """
    # Ray Train would move its workers to another folder, where the configuration's relative paths mean nothing.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", CONTROLLER_POLL_SECONDS)
    dataset = rollout_dataset(settings, inputs.batches, crew.rollout_fleet, crew.store, crew.journal)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": TrainLoopConfig(
                settings=settings,
                sample_prompts=inputs.prompts.held_out,
                store=crew.store,
                journal=crew.journal,
                rollout_fleet=crew.rollout_fleet,
                reward_fleet=crew.reward_fleet,
            )
        },
        # NCCL moves no CPU tensors, and the counts and hashes that workers compare are on the CPU.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if settings.learner.num_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.learner.num_workers,
            use_gpu=settings.learner.num_gpus > 0,
            resources_per_worker={"CPU": settings.learner.num_cpus, "GPU": settings.learner.num_gpus},
        ),
        run_config=RunConfig(
            name=CHECKPOINTS_FOLDER,
            storage_path=str(run_directory.resolve()),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.checkpoint.keep),
        ),
        datasets={"train": dataset},
        dataset_config=DataConfig(execution_options=dataset.context.execution_options),
    )
    return trainer.fit()


def _train_worker(loop_config: dict[str, Any]) -> None:
    # Ray Train's controller imports this module too, and needs no networks.
    from actors.learner import train_loop

    config: TrainLoopConfig = loop_config["config"]
    rank = ray.train.get_context().get_world_rank()
    log_in_actor("learner", f"learner-{rank}", config.journal.log.remote)
    try:
        train_loop(config)
    except Exception:
        logger.exception("the learner failed")
        raise
