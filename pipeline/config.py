"""Every setting of a run, one sentence each. Defaults are the paper's, or D3PO's where the paper inherits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.method_settings import AnyMethod, TailorPOSettings
from pipeline.prompt_settings import PromptSettings
from pipeline.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings
from pipeline.tracking.settings import AnyTracker, TensorBoardSettings
from pipeline.trajectory_work import TrajectoryWork
from pipeline.worker_settings import LearnerSettings, PoolSettings, RewardPoolSettings, RolloutSettings


class ModelSettings(Settings):
    """The base model, which is also the reference."""

    path: str
    """Directory of a diffusers StableDiffusionPipeline, or its id on the hub."""
    revision: str | None = None
    """Commit, tag or branch of a hub id. By default the newest commit of its main branch, which jobs/align.py and
    jobs/compare.py look up once and keep, so that workers that start later, or after a resumption, load the same
    weights."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the frozen networks; the adapter, the scheduler's arithmetic and the records are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes the GPU where an actor is given one."""
    compile: bool = False
    """Compile the UNet with torch.compile: slower to start, faster per step on a GPU."""
    channels_last: bool = False
    """Store the UNet's convolutions channels-last, which tensor cores prefer."""


class LoraSettings(Settings):
    """The adapter that is trained."""

    rank: PositiveInt = 4
    """Rank of every LoRA update (D3PO's value)."""
    alpha: PositiveInt = 4
    """LoRA scaling numerator; the update is multiplied by alpha / rank."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the UNet's linear layers that get an adapter."""
    blocks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Blocks of the UNet that get an adapter, such as mid_block or up_blocks.0; by default all of them."""


class SamplingSettings(Settings):
    """The sampler of rollouts, sample grids and evaluation."""

    num_steps: Annotated[int, Field(ge=2)] = 20
    """T, the number of DDIM steps."""
    eta: Annotated[float, Field(gt=0, le=1)] = 1.0
    """DDIM's eta; the Gaussian transition needs eta above 0."""
    guidance_scale: Annotated[float, Field(ge=1)] = 5.0
    """Classifier-free guidance scale, in sampling and in training; 1 runs the conditional branch only."""


class RewardSettings(Settings):
    """A reward model."""

    name: str
    """Name in the registry: jpeg_compressibility, clip, pickscore, hpsv2, http, ...; docs/rewards.md has them all. Or
    module:Class, a reward of your own."""
    path: str | None = None
    """File, directory or hub id of its weights, where it has any; by default the hub id that the reward declares. The
    URL of an http reward."""
    scale: PositiveFloat | None = None
    """One unit of the reward, in guidance, in SPO's threshold and in a sum of several; by default the scale the reward
    declares."""


def label_rewards(rewards: Sequence[RewardSettings]) -> tuple[str, ...]:
    """What rewards are called in tables: by name, and path where two share a name."""
    names = [reward.name for reward in rewards]
    return tuple(
        f"{reward.name} ({reward.path})" if names.count(reward.name) > 1 else reward.name for reward in rewards
    )


class WeightedRewardSettings(RewardSettings):
    """What is trained on: one reward, or a list of several, whose weighted sum ranks and is recorded.

    One reward is recorded in its own unit. In a sum each is divided by its scale first, so that weights compare.
    """

    weight: float = 1.0
    """Weight in the sum, for rewards in a list; a negative one asks for low scores."""

    @model_validator(mode="after")
    def _counts(self) -> "WeightedRewardSettings":
        if self.weight == 0:
            raise ValueError(f"reward {self.name!r} has weight=0; to watch a reward, put it under evaluation.rewards")
        return self


def _one_or_several(value: object) -> str:
    return "several rewards" if isinstance(value, (list, tuple)) else "one reward"


# The tags stand in the place of an error; `config_loading` leaves them out of its messages.
REWARD_TAGS = ("one reward", "several rewards")
OneOrSeveralRewards = Annotated[
    Annotated[WeightedRewardSettings, Tag("one reward")]
    | Annotated[tuple[WeightedRewardSettings, ...], Tag("several rewards")],
    Discriminator(_one_or_several),
]


class CheckpointSettings(Settings):
    """When a run can be taken up again."""

    every: PositiveInt = 1
    """Iterations between checkpoints; the last iteration always has one."""
    keep: PositiveInt = 2
    """Checkpoints kept."""
    retry_seconds: NonNegativeFloat = 300.0
    """How long a write to the run folder that fails is tried again, with pauses that double, before the run stops."""
    grace_seconds: NonNegativeFloat = 60.0
    """How long a run that SIGTERM or Ctrl-C stops may take to end its iteration with a checkpoint, before it gives the
    iteration up."""


class RecordSettings(Settings):
    """What becomes of the preference records."""

    save: bool = False
    """Keep every iteration's records as Parquet under records/."""


class SampleSettings(Settings):
    """Pictures of fixed prompts and seeds."""

    every: PositiveInt = 10
    """Iterations between image grids."""
    count: PositiveInt = 16
    """Images in a grid."""


class EvaluationSettings(Settings):
    """The held-out table at the end: base against aligned, on the same prompts and seeds."""

    images: NonNegativeInt = 256
    """Pairs of images, spread evenly over the held-out prompts, two or more for each; of more prompts the first are
    taken. 0 leaves the evaluation out."""
    batch_size: PositiveInt = 16
    """Images denoised together."""
    rewards: tuple[RewardSettings, ...] = ()
    """Rewards reported beside the one trained on."""

    @model_validator(mode="after")
    def _has_pairs(self) -> "EvaluationSettings":
        if self.images == 1:
            raise ValueError("evaluation.images=1 gives no interval; use 0 to leave the evaluation out, or at least 2")
        return self


class RunSettings(Settings):
    """A whole run."""

    name: str
    """Name of the run; its folder is output_dir/name."""
    output_dir: str = "runs"
    """Where run folders are made: a path that driver and learner see, or a bucket, such as s3://bucket/runs or
    gs://bucket/runs."""
    seed: NonNegativeInt = 0
    """Every random number of the run follows from this one."""
    iterations: PositiveInt = 100
    """How often to roll out, learn and publish."""
    budget_seconds: PositiveFloat | None = None
    """Stop after the iteration in which this many seconds of rollouts and learning are spent; `iterations` is then the
    most. No limit by default."""
    model: ModelSettings
    lora: LoraSettings = LoraSettings()
    sampling: SamplingSettings = SamplingSettings()
    method: AnyMethod = TailorPOSettings()
    reward: OneOrSeveralRewards
    """The reward that is trained on, or a list of several."""
    reward_normalisation: Literal["scale", "running"] = "scale"
    """What each of several rewards is divided by: its scale, or the deviation of its scores of finished images over all
    past iterations (which are centred on their mean too)."""
    prompts: PromptSettings = PromptSettings()
    rollout: RolloutSettings = RolloutSettings()
    reward_actors: RewardPoolSettings = RewardPoolSettings()
    learner: LearnerSettings = LearnerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    records: RecordSettings = RecordSettings()
    samples: SampleSettings = SampleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: tuple[AnyTracker, ...] = (TensorBoardSettings(),)
    """Where the metrics go beside metrics.jsonl: a list of tensorboard, wandb and mlflow, by name or as sections."""

    @model_validator(mode="after")
    def _trackers_differ(self) -> "RunSettings":
        names = [tracker.name for tracker in self.tracking]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"tracking lists {name} twice; list it once")
        return self

    @model_validator(mode="after")
    def _trained_steps_lie_in_the_grid(self) -> "RunSettings":
        self.method.check_grid(self.sampling.num_steps)
        return self

    @model_validator(mode="after")
    def _rewards_make_a_sum(self) -> "RunSettings":
        rewards = self.rewards
        if not rewards:
            raise ValueError("reward is an empty list; name at least one reward")
        if len(rewards) == 1 and rewards[0].weight != 1:
            raise ValueError(
                f"reward {rewards[0].name!r} has weight={rewards[0].weight} and nothing to be weighed against; drop it"
            )
        if len(rewards) == 1 and self.reward_normalisation == "running":
            raise ValueError("reward_normalisation=running needs several rewards; one is recorded in its own unit")
        if self.reward_normalisation == "running" and self.method.remembers_rewards:
            raise ValueError(
                "reward_normalisation=running changes the unit of the sum from iteration to iteration, and "
                f"{self.method.title} compares the rewards of several iterations; use reward_normalisation=scale"
            )
        if len(rewards) > 1 and not self.method.draws_images:
            raise ValueError(
                f"{self.method.title} learns from its data set and weighs no rewards; leave one under reward, and put "
                "the others under evaluation.rewards"
            )
        named = [(reward.name, reward.path) for reward in rewards]
        for name, path in named:
            if named.count((name, path)) > 1:
                raise ValueError(f"reward {name!r} with path {path!r} is listed twice; list it once, with one weight")
        return self

    @model_validator(mode="after")
    def _a_uri_holds_no_secret(self) -> "RunSettings":
        if "://" in self.output_dir and set("@?") & set(self.output_dir):
            raise ValueError(
                "output_dir is a URI with credentials or options, which would be copied into run folders and logs; "
                "leave them to the environment, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL, or to the nodes' roles"
            )
        return self

    @model_validator(mode="after")
    def _a_hung_reward_actor_is_noticed_first(self) -> "RunSettings":
        if self.rollout.timeout_seconds <= self.reward_actors.timeout_seconds:
            raise ValueError(
                f"rollout.timeout_seconds={self.rollout.timeout_seconds:g} is not above reward_actors.timeout_seconds="
                f"{self.reward_actors.timeout_seconds:g}: when a reward actor hangs, the rollout worker that waits for "
                "it would be killed first; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _gpus_are_reserved(self) -> "RunSettings":
        roles: dict[str, PoolSettings | LearnerSettings] = {
            "rollout": self.rollout,
            "reward_actors": self.reward_actors,
            "learner": self.learner,
        }
        without = [f"{name}.num_gpus" for name, role in roles.items() if role.num_gpus == 0]
        if self.model.device == "cuda" and without:
            raise ValueError(
                f"model.device=cuda, but {', '.join(without)} {'is' if len(without) == 1 else 'are'} 0, and an actor "
                "sees only GPUs that it has reserved; raise them (a fraction shares one), or set model.device=auto"
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> "RunSettings":
        trajectories, batch = self.rollout.trajectories, self.rollout.batch_size
        if trajectories % batch:
            raise ValueError(
                f"rollout.trajectories={trajectories} is no multiple of rollout.batch_size={batch}; "
                f"{trajectories // batch * batch or batch} is"
            )
        together = self.method.trajectories_per_sample
        if batch % together:
            raise ValueError(
                f"rollout.batch_size={batch} is no multiple of {together}, the trajectories that method "
                f"{self.method.name!r} compares; {batch + together - batch % together} is"
            )
        records = self.records_per_iteration
        for workers in self.learner.worker_counts:
            if records % workers:
                raise ValueError(
                    f"an iteration makes {records} records ({self._records_in_words}), which {workers} workers of "
                    f"learner.num_workers={self.learner.num_workers} cannot share equally; change one of them"
                )
        if records % self.learner.minibatch_size:
            raise ValueError(
                f"an iteration makes {records} records ({self._records_in_words}), which "
                f"learner.minibatch_size={self.learner.minibatch_size} does not divide; change one of them"
            )
        return self

    def is_over(self, iterations: int, seconds: float) -> bool:
        """Whether a run makes no more after so many iterations, which took so many seconds."""
        return iterations >= self.iterations or (self.budget_seconds is not None and seconds >= self.budget_seconds)

    @property
    def location(self) -> str:
        """The run folder of a new run, as `output_dir` and `name` give it."""
        if "://" in self.output_dir:
            return f"{self.output_dir.rstrip('/')}/{self.name}"
        return str(Path(self.output_dir) / self.name)

    @property
    def rewards(self) -> tuple[WeightedRewardSettings, ...]:
        """The rewards that are trained on, be it one or several."""
        return self.reward if isinstance(self.reward, tuple) else (self.reward,)

    @property
    def reward_labels(self) -> tuple[str, ...]:
        """What `rewards`, and after them `evaluation.rewards`, are called: by name, and path where two share a name."""
        return label_rewards((*self.rewards, *self.evaluation.rewards))

    @property
    def reward_title(self) -> str:
        """What is trained on, such as `clip`, or `clip + 0.5 × jpeg_compressibility`."""
        return " + ".join(
            label if reward.weight == 1 else f"{reward.weight:g} × {label}"
            for label, reward in zip(self.trained_reward_labels, self.rewards, strict=True)
        )

    @property
    def rewards_learnt_from(self) -> "tuple[RewardSettings, ...]":
        """`rewards`, or none where the method learns from pairs of images that others preferred."""
        return self.rewards if self.method.learns_from_rewards else ()

    @property
    def holds_out(self) -> bool:
        """Whether the evaluation names other prompts than those trained on, which are captions of pairs where the
        method learns from those; two sources may still overlap."""
        return not self.method.draws_images or self.prompts.holds_out

    @property
    def trained_reward_labels(self) -> tuple[str, ...]:
        """The part of `reward_labels` that names `rewards`."""
        return self.reward_labels[: len(self.rewards)]

    @property
    def trained_grid_steps(self) -> tuple[int, ...]:
        """The trained steps as indices into the sampling grid, 0 = noisiest."""
        return self.method.trained_grid_steps(self.sampling.num_steps)

    @property
    def trained_steps(self) -> tuple[int, ...]:
        """The trained steps counted as steps that remain, as `method.trained_steps` counts them."""
        return tuple(self.sampling.num_steps - step for step in self.trained_grid_steps)

    @property
    def samples_per_batch(self) -> int:
        """Samples in a rollout's batch: as many as trajectories, or half of them where two share a sample."""
        return self.rollout.batch_size // self.method.trajectories_per_sample

    @property
    def batches_per_iteration(self) -> int:
        """Batches that an iteration rolls out."""
        return self.rollout.trajectories // self.rollout.batch_size

    @property
    def records_per_iteration(self) -> int:
        """Records one iteration makes, ties included."""
        per_sample = self.method.records_per_sample(self.sampling.num_steps)
        return self.samples_per_batch * self.batches_per_iteration * per_sample

    @property
    def work(self) -> TrajectoryWork:
        """What one trajectory costs."""
        return self.method.work(self.sampling.num_steps)

    @property
    def network_calls_per_trajectory(self) -> float:
        """Forward calls of the network that one trajectory costs, from sampling to learning."""
        return self.work.network_calls(self.learner.inner_epochs)

    @property
    def learning_rate(self) -> float:
        """The configured learning rate, else the method's own."""
        given = self.learner.learning_rate
        return self.method.default_learning_rate if given is None else given

    @property
    def _records_in_words(self) -> str:
        together = self.method.trajectories_per_sample
        steps = f" x {len(self.trained_grid_steps)} steps" if self.trained_grid_steps else ""
        return f"rollout.trajectories{f' / {together}' if together > 1 else ''}{steps}"
