"""The settings of a run's workers: the pools of rollout workers and reward actors, and the learner."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings import DecayRate, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings


def refuse_uneven_gpus(num_gpus: float) -> None:
    """Refuse what Ray cannot reserve.

    Raises:
        ValueError: more than one GPU, and not a whole number of them.
    """
    if num_gpus > 1 and not num_gpus.is_integer():
        raise ValueError(f"num_gpus={num_gpus:g} is neither a share of one GPU nor a whole number of them")


class PoolSettings(Settings):
    """A set of equal actors that grows to its maximum, and replaces those that are lost."""

    min_workers: PositiveInt = 1
    """How many are asked for before the learner, and never given back; work starts with the first that is ready."""
    max_workers: PositiveInt = 1
    """How many are asked for once the learner has its place; those that cannot be placed wait, which is what makes an
    autoscaler add nodes."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs reserved by each actor."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs reserved by each actor; a fraction shares one."""
    threads: PositiveInt = 1
    """Threads of torch in each actor; results on the CPU are equal to the last bit only for equal thread counts."""
    idle_seconds: PositiveFloat | None = 900.0
    """An actor above the minimum that has had nothing to do for so long is given back, and with it the node that an
    autoscaler added for it; it is asked for again when calls wait. null keeps all until the run ends."""
    timeout_seconds: PositiveFloat = 3600.0
    """An actor that takes longer over one call, such as a batch, is taken for hung: it is killed and replaced, and the
    call made again. Nor may it take longer over loading its models, which downloads them where a node has none yet."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "PoolSettings":
        refuse_uneven_gpus(self.num_gpus)
        return self

    @model_validator(mode="after")
    def _ordered(self) -> "PoolSettings":
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers={self.min_workers} is above max_workers={self.max_workers}; raise max_workers"
            )
        return self


class RolloutSettings(PoolSettings):
    """Rollout workers: they denoise and record preferences."""

    trajectories: PositiveInt = 64
    """Trajectories in an iteration, one prompt each."""
    batch_size: PositiveInt = 8
    """Trajectories denoised together."""
    batches_in_flight: PositiveInt = 2
    """Batches a worker keeps going, so that one is denoised while another is scored."""
    max_staleness: Literal[0, 1] = 0
    """0: every record is of the policy that learns from it. 1: an iteration is rolled out while the learner is on the
    one before, with a policy one version old, so that neither waits for the other."""


class RewardPoolSettings(PoolSettings):
    """Reward actors: they decode latents, score images and return gradients."""

    decode_chunk: PositiveInt = 8
    """Latents decoded and scored at once; bounds the memory of the decoder."""
    gradient_chunk: PositiveInt | None = None
    """Latents whose rewards are differentiated at once, for guidance; by default decode_chunk. The decoder keeps
    what the backward pass needs, many times what it takes to decode."""
    step_decoder: str | None = None
    """Directory or hub id of an AutoencoderTiny for the model's latents, which decodes the images predicted at trained
    steps: sooner and less exactly than the model's own decoder, which always decodes finished images."""
    timeout_seconds: PositiveFloat = 1800.0
    """As for rollout workers, whose batches contain such calls and need longer time-outs."""


class LearnerSettings(Settings):
    """The learner and its optimiser (AdamW)."""

    num_workers: PositiveInt = 1
    """Ray Train workers; gradients do not depend on how many there are."""
    min_workers: PositiveInt | None = None
    """Fewest workers to go on with: the learner shrinks when a node is lost and grows back to num_workers when there is
    room. By default it waits for all of them. Ray Train counts what nodes have, not what is free of it: use this where
    the learner's nodes are of a size that no other role takes."""
    max_restarts: NonNegativeInt = 3
    """How often lost workers are replaced, and the run taken up at its last checkpoint, before the run ends. Spot nodes
    that are taken back do not count, if a notice reached Ray before; those that go without a word do."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs reserved by each worker."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs reserved by each worker; a fraction shares one."""
    threads: PositiveInt = 1
    """Threads of torch in each worker."""
    timeout_seconds: PositiveFloat = 1800.0
    """A worker that takes longer over one optimiser step is taken for hung: it ends, is replaced as any that is lost,
    and the run is taken up at its last checkpoint. Nor may it take longer over loading the model, which downloads it
    where a node has none yet."""
    minibatch_size: PositiveInt = 64
    """Records (pairs; for DDPO, steps) per optimiser step, over all workers."""
    micro_batch_size: PositiveInt = 8
    """Records per forward and backward; bounds the memory of the learner."""
    inner_epochs: PositiveInt = 1
    """Passes over an iteration's records."""
    learning_rate: PositiveFloat | None = None
    """AdamW's learning rate; by default that of the method's own paper."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: NonNegativeFloat = 1e-4
    """AdamW's weight decay."""
    epsilon: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    warmup_steps: NonNegativeInt = 0
    """Optimiser steps over which the learning rate rises from zero."""
    loss_scale: PositiveFloat | None = None
    """Factor on the loss in the backward pass, divided out of the gradients again: float16 rounds small ones to zero.
    By default 4096 with model.dtype=float16, and 1 otherwise; a power of two changes nothing else."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is scaled down to this norm."""
    max_skipped_steps: NonNegativeInt = 10
    """Optimiser steps that may be skipped for a gradient that is not finite, before the run stops."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the adapter, exported beside the raw one; none by default."""

    @property
    def worker_counts(self) -> range:
        """The numbers of workers that the learner may have while a run goes on."""
        return range(self.min_workers or self.num_workers, self.num_workers + 1)

    @model_validator(mode="after")
    def _can_be_placed(self) -> "LearnerSettings":
        refuse_uneven_gpus(self.num_gpus)
        if self.num_cpus == self.num_gpus == 0:
            raise ValueError("num_cpus=0 and num_gpus=0 reserve nothing for the learner to be placed by; reserve a CPU")
        if self.num_workers > 1 and 0 < self.num_gpus < 1:
            raise ValueError(
                f"num_workers={self.num_workers} with num_gpus={self.num_gpus:g} may share a GPU, over which NCCL does "
                "not add gradients up; give each worker a whole one"
            )
        return self

    @model_validator(mode="after")
    def _elastic_range(self) -> "LearnerSettings":
        if not self.worker_counts:
            raise ValueError(
                f"min_workers={self.min_workers} is above num_workers={self.num_workers}; raise num_workers"
            )
        return self
