"""The arithmetic of a run before it starts: how much work, how many bytes."""

import math
from dataclasses import dataclass

from pipeline.adapter import BareAdapter
from pipeline.config import RunSettings
from pipeline.policy import latent_shape_of

FLOAT32_BYTES = 4

# Of a trajectory that is being scored: two candidates, and a gradient of each.
LATENTS_BEING_SCORED = 4

# Versions of the adapter that the weight store holds.
ADAPTER_VERSIONS = 3


@dataclass(frozen=True)
class RunArithmetic:
    """Work of a run. A network call is one latent through the network, with both branches of its guidance."""

    trajectories_per_iteration: int
    records_per_iteration: int
    policy_calls_per_trajectory: float
    policy_gradient_calls_per_trajectory: float
    reference_calls_per_trajectory: float
    decoded_images_per_trajectory: float
    learner_calls_per_trajectory: float
    network_calls_per_iteration: int
    optimiser_steps_per_iteration: int
    learning_rate: float
    adapter_parameters: int
    object_store_bytes_per_iteration: int
    object_store_bytes_at_once: int
    total_trajectories: int
    total_network_calls: int
    total_optimiser_steps: int


def run_arithmetic(settings: RunSettings) -> RunArithmetic:
    """Count the work of a run from its settings and the UNet's configuration; nothing is allocated."""
    work = settings.work
    trajectories, records = settings.rollout.trajectories, settings.records_per_iteration
    steps = settings.learner.inner_epochs * records // settings.learner.minibatch_size
    network_calls = round(settings.network_calls_per_trajectory * trajectories)
    latent, adapter = _latent_and_adapter_sizes(settings)
    # A gradient travels back for each latent that was sent to be differentiated.
    rollout = settings.rollout
    being_scored = rollout.max_workers * rollout.batches_in_flight * rollout.batch_size
    # The learner takes an iteration's records when the last of them is made, and may hold those of the one before.
    resting_latents = (1 + rollout.max_staleness) * trajectories * work.record_latents
    resting_latents += min(being_scored, trajectories) * LATENTS_BEING_SCORED
    travelling_latents = trajectories * (work.record_latents + work.decoded_images + work.gradient_decodes)
    return RunArithmetic(
        trajectories_per_iteration=trajectories,
        records_per_iteration=records,
        policy_calls_per_trajectory=work.policy_calls,
        policy_gradient_calls_per_trajectory=work.policy_gradient_calls,
        reference_calls_per_trajectory=work.reference_calls,
        decoded_images_per_trajectory=work.decoded_images,
        learner_calls_per_trajectory=work.learner_calls * settings.learner.inner_epochs,
        network_calls_per_iteration=network_calls,
        optimiser_steps_per_iteration=steps,
        learning_rate=settings.learning_rate,
        adapter_parameters=adapter,
        object_store_bytes_per_iteration=round(FLOAT32_BYTES * (travelling_latents * latent + adapter)),
        object_store_bytes_at_once=round(FLOAT32_BYTES * (resting_latents * latent + ADAPTER_VERSIONS * adapter)),
        total_trajectories=trajectories * settings.iterations,
        total_network_calls=network_calls * settings.iterations,
        total_optimiser_steps=steps * settings.iterations,
    )


def _latent_and_adapter_sizes(settings: RunSettings) -> tuple[int, int]:
    """Elements of one latent, and parameters of the adapter."""
    bare = BareAdapter.make(settings.model.path, settings.lora, settings.model.revision)
    adapter = sum(value.numel() for value in bare.adapter_parameters().values())
    return math.prod(latent_shape_of(bare.unet.config)), adapter
