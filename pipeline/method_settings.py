"""The settings of every method, which light tasks read without torch; the algorithms lie in pipeline/methods/."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, SerializeAsAny, Tag, model_validator

from pipeline.own_classes import is_own
from pipeline.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings
from pipeline.trajectory_work import TrajectoryWork


class MethodSettings(Settings, ABC):
    """What the rest of the system must know of a method before it runs.

    Attributes:
        trajectories_per_sample: how many trajectories of one prompt a record compares; a batch holds whole samples.
        default_learning_rate: the learning rate of the method's own paper or code.
        paper: where the method was published.
        reward_columns: columns of its records with rewards of finished images, one for each trajectory of a sample.
        remembers_rewards: whether it compares rewards of one iteration with those of past ones, in one unit.
        draws_images: whether its rollouts end in finished images, whose rewards are recorded.
    """

    trajectories_per_sample: ClassVar[int] = 1
    default_learning_rate: ClassVar[float] = 3e-5
    paper: ClassVar[str]
    reward_columns: ClassVar[tuple[str, ...]] = ("final_reward",)
    remembers_rewards: ClassVar[bool] = False
    draws_images: ClassVar[bool] = True

    name: str
    """Which algorithm: module:Class for one of your own."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The method's name as its paper writes it."""

    @abstractmethod
    def trained_grid_steps(self, num_steps: int) -> tuple[int, ...]:
        """Indices into the sampling grid, 0 = noisiest, of the steps that are recorded and trained on."""

    @abstractmethod
    def work(self, num_steps: int) -> TrajectoryWork:
        """What one trajectory costs on a grid of `num_steps`; a test holds it against real networks."""

    def records_per_sample(self, num_steps: int) -> int:
        """Records that one sample makes, one for each trained step."""
        return len(self.trained_grid_steps(num_steps))

    def check_grid(self, num_steps: int) -> None:
        """Refuse steps that a grid of `num_steps` does not have.

        Raises:
            ValueError: which step, and what to use.
        """

    @property
    def learns_from_rewards(self) -> bool:
        """Whether the run's rewards decide what is learnt."""
        return True

    @property
    def needs_gradient(self) -> bool:
        """Whether rollouts ask for the reward's gradient."""
        return False


class GuidanceSettings(Settings):
    """Gradient guidance; its presence turns TailorPO into TailorPO-G."""

    eta_min: PositiveFloat = 0.1
    """Guidance strength at the noisiest trained step."""
    eta_max: PositiveFloat = 0.2
    """Guidance strength at the cleanest trained step."""
    delta: PositiveFloat = 0.5
    """How far above the winner's own reward the target r_high lies, in units of the reward's scale."""

    @model_validator(mode="after")
    def _ordered(self) -> "GuidanceSettings":
        if self.eta_min > self.eta_max:
            raise ValueError(
                f"eta_min={self.eta_min} is above eta_max={self.eta_max}; guidance rises towards the image"
            )
        return self


TAILORPO = "tailorpo"
"""The name of TailorPO itself; a method that is derived from it has another."""


class TailorPOSettings(MethodSettings):
    """TailorPO: two candidates from one x_t, ranked by their step-wise rewards, at every trained step."""

    paper: ClassVar[str] = "arXiv:2502.01667"

    name: str = TAILORPO
    """Which algorithm."""
    trained_steps: tuple[int, ...] = (20, 16, 12, 8, 4)
    """Steps at which two candidates are drawn, counted as steps that remain: num_steps is the noisiest; 1,
    the last, has no next step to be scored at and is refused."""
    beta: PositiveFloat = 0.1
    """Strength of the implicit KL penalty; it means nothing without `reduction`."""
    reduction: Literal["mean", "sum"] = "mean"
    """How log-probabilities are reduced over C, H, W."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Clamp each probability ratio to [1 - x, 1 + x] as D3PO does; none by default, as in the paper's Eq. 10."""
    min_gap: NonNegativeFloat = 0.0
    """Pairs whose step-wise rewards (or weighted sums of several) differ by no more than this are ties: counted, and
    not trained on."""
    guidance: GuidanceSettings | None = None
    """Gradient guidance (TailorPO-G); needs a differentiable reward."""

    @property
    def title(self) -> str:
        """The method's name as its paper writes it."""
        return "TailorPO-G" if self.guidance is not None else "TailorPO"

    def trained_grid_steps(self, num_steps: int) -> tuple[int, ...]:
        """`trained_steps` counted from the noisiest step, 0."""
        return tuple(num_steps - step for step in self.trained_steps)

    def work(self, num_steps: int) -> TrajectoryWork:
        """The winner's output is reused; the guidance's gradient decodes the winner once more."""
        trained = len(self.trained_steps)
        guided = trained if self.guidance is not None else 0
        return TrajectoryWork(
            policy_calls=num_steps + trained + guided,
            policy_gradient_calls=guided,
            reference_calls=trained,
            decoded_images=2 * trained + 2 * guided + 1,
            gradient_decodes=guided,
            learner_calls=trained,
            record_latents=4 * trained,
        )

    def check_grid(self, num_steps: int) -> None:
        """Refuse trained steps that are not in the grid, or are its last.

        Raises:
            ValueError: which step, and what to use.
        """
        steps = self.trained_steps
        if not steps:
            raise ValueError("method.trained_steps is empty; the paper trains 20, 16, 12, 8 and 4 of 20 steps")
        outside = [step for step in steps if not 1 <= step <= num_steps]
        if outside:
            raise ValueError(
                f"method.trained_steps has {outside}, outside the grid of {num_steps} steps; use 2 to {num_steps}"
            )
        if 1 in steps:
            raise ValueError(
                "method.trained_steps includes 1, the last step, which has no next step to be scored at; drop it"
            )
        if list(steps) != sorted(set(steps), reverse=True):
            raise ValueError(
                f"method.trained_steps is {list(steps)}; list each step once, from noisy to clean (descending)"
            )

    @property
    def needs_gradient(self) -> bool:
        """True for TailorPO-G."""
        return self.guidance is not None


class D3POSettings(MethodSettings):
    """D3PO: two trajectories from one x_T, ordered by their final rewards, trained on at every step."""

    trajectories_per_sample: ClassVar[int] = 2
    paper: ClassVar[str] = "arXiv:2311.13231"
    reward_columns: ClassVar[tuple[str, ...]] = ("winner_reward", "loser_reward")

    name: str = "d3po"
    """Which algorithm."""
    beta: PositiveFloat = 0.1
    """Strength of the implicit KL penalty; it means nothing without `reduction`."""
    reduction: Literal["mean", "sum"] = "mean"
    """How log-probabilities are reduced over C, H, W."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] | None = 0.1
    """Clamp each probability ratio to [1 - x, 1 + x]; null does not clamp."""
    min_gap: NonNegativeFloat = 0.0
    """Pairs whose final rewards differ by no more than this are ties: counted, and not trained on."""

    @property
    def title(self) -> str:
        """The method's name as its paper writes it."""
        return "D3PO"

    def trained_grid_steps(self, num_steps: int) -> tuple[int, ...]:
        """Every step."""
        return tuple(range(num_steps))

    def work(self, num_steps: int) -> TrajectoryWork:
        """Of one of the two trajectories: they share the calls at x_T."""
        return TrajectoryWork(
            policy_calls=num_steps - 0.5,
            reference_calls=num_steps - 0.5,
            decoded_images=1,
            learner_calls=num_steps,
            record_latents=2 * num_steps,
        )


class DDPOSettings(MethodSettings):
    """DDPO: a clipped policy gradient on every step of single trajectories, with rewards normalised per prompt."""

    default_learning_rate: ClassVar[float] = 3e-4
    paper: ClassVar[str] = "arXiv:2305.13301"
    reward_columns: ClassVar[tuple[str, ...]] = ("reward",)
    remembers_rewards: ClassVar[bool] = True

    name: str = "ddpo"
    """Which algorithm."""
    reduction: Literal["mean", "sum"] = "mean"
    """How log-probabilities are reduced over C, H, W."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """The ratio of new to old probability has no gradient outside [1 - x, 1 + x] where that would go on improving."""
    advantage_clip: PositiveFloat = 5.0
    """Advantages are clamped to this many deviations."""
    prompt_history: PositiveInt = 32
    """Last rewards of each prompt that its mean and deviation are taken over."""
    prompt_history_min: PositiveInt = 16
    """A prompt with fewer rewards so far is normalised by the iteration's rewards over all prompts."""

    @model_validator(mode="after")
    def _history_can_fill(self) -> "DDPOSettings":
        if self.prompt_history_min > self.prompt_history:
            raise ValueError(
                f"prompt_history_min={self.prompt_history_min} is above prompt_history={self.prompt_history}, "
                "which it could never reach; lower it"
            )
        return self

    @property
    def title(self) -> str:
        """The method's name as its paper writes it."""
        return "DDPO"

    def trained_grid_steps(self, num_steps: int) -> tuple[int, ...]:
        """Every step."""
        return tuple(range(num_steps))

    def work(self, num_steps: int) -> TrajectoryWork:
        """One call per step, and one forward and backward."""
        return TrajectoryWork(
            policy_calls=num_steps, decoded_images=1, learner_calls=num_steps, record_latents=2 * num_steps
        )


class SPOSettings(MethodSettings):
    """SPO: at every step after `plain_steps` a pool of candidates from one x_t; best and worst pair, any continues."""

    default_learning_rate: ClassVar[float] = 6e-5
    paper: ClassVar[str] = "arXiv:2406.04314"

    name: str = "spo"
    """Which algorithm."""
    beta: PositiveFloat = 10.0
    """Strength of the implicit KL penalty; it means nothing without `reduction`."""
    reduction: Literal["mean", "sum"] = "mean"
    """How log-probabilities are reduced over C, H, W."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] | None = 0.1
    """Clamp each probability ratio to [1 - x, 1 + x]; null does not clamp."""
    pool_size: Annotated[int, Field(ge=2)] = 4
    """Candidates drawn from each x_t."""
    plain_steps: NonNegativeInt = 4
    """Steps at the noisy end without a pool."""
    min_probability_gap: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Best and worst make a pair if the softmax of their two scores, in units of the reward, differs by more."""

    @property
    def title(self) -> str:
        """The method's name as its paper writes it."""
        return "SPO"

    def trained_grid_steps(self, num_steps: int) -> tuple[int, ...]:
        """Every step after the plain ones, the last included."""
        return tuple(range(self.plain_steps, num_steps))

    def work(self, num_steps: int) -> TrajectoryWork:
        """A call for each plain step and the first pool's x_t, then one for each candidate that is not yet clean."""
        pools = num_steps - self.plain_steps
        return TrajectoryWork(
            policy_calls=self.plain_steps + 1 + self.pool_size * (pools - 1),
            reference_calls=pools,
            decoded_images=self.pool_size * pools,
            learner_calls=pools,
            record_latents=4 * pools,
        )

    def check_grid(self, num_steps: int) -> None:
        """Refuse a grid without a step for a pool.

        Raises:
            ValueError: how many steps there are, and how many of them are plain.
        """
        if self.plain_steps >= num_steps:
            raise ValueError(
                f"method.plain_steps={self.plain_steps} leaves no step of {num_steps} for a pool; use at most "
                f"{num_steps - 1}"
            )


class PairMethodSettings(MethodSettings, ABC):
    """A method that learns off-line, from pairs of images that exist already.

    A pair of images counts as two trajectories. `reward` heads the evaluation's table.
    """

    trajectories_per_sample: ClassVar[int] = 2
    reward_columns: ClassVar[tuple[str, ...]] = ()
    draws_images: ClassVar[bool] = False

    data: str
    """Pairs of images with the columns of Pick-a-Pic, caption, jpg_0, jpg_1 and label_0: a Parquet file, a directory or
    pattern of them, the id of a data set on the Hugging Face hub, or an hf:// path of files there."""
    max_rows: PositiveInt | None = None
    """Rows of the data set that are read, from its beginning; all of them by default."""
    max_unreadable: NonNegativeInt = 10
    """Pairs that may be left out because an image of theirs does not decode, before the run is refused."""
    preferred_by_reward: bool = False
    """Whether `reward` is what preferred one image of each pair: then it counts as trained on, wherever that matters to
    an evaluation or a comparison."""

    @property
    def learns_from_rewards(self) -> bool:
        """Only through whoever preferred the pairs."""
        return self.preferred_by_reward

    def trained_grid_steps(self, num_steps: int) -> tuple[int, ...]:
        """None: nothing is sampled on the grid."""
        return ()

    def records_per_sample(self, num_steps: int) -> int:
        """One record for each pair."""
        return 1


class DiffusionDPOSettings(PairMethodSettings):
    """Diffusion-DPO: preferences between images that exist already, noised to one time; nothing is sampled.

    A pair of images counts as two trajectories. `reward` heads the evaluation's table.
    """

    # 1e-8 for each pair of a minibatch of 2,048, as their code scales it.
    default_learning_rate: ClassVar[float] = 2.048e-5
    paper: ClassVar[str] = "arXiv:2311.12908"

    name: str = "diffusion_dpo"
    """Which algorithm."""
    beta: PositiveFloat = 5000.0
    """Strength of the implicit KL penalty, on errors averaged over C, H, W."""
    empty_prompts: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the pairs that are learnt from without their prompt, which keeps classifier-free guidance sound."""

    @property
    def title(self) -> str:
        """The method's name as its paper writes it."""
        return "Diffusion-DPO"

    def work(self, num_steps: int) -> TrajectoryWork:
        """Of one of the two images: a call of each network, of the branch with the prompt alone."""
        return TrajectoryWork(policy_calls=0, reference_calls=1, decoded_images=0, learner_calls=1, record_latents=1.5)


OWN_METHOD = "module:Class"
"""The form of the name of a method of one's own, and what such methods are called among the others."""


def _name_of(method: object) -> object:
    """Which method a section of the configuration means; TailorPO where it gives no name."""
    name = method.get("name", TAILORPO) if isinstance(method, dict) else getattr(method, "name", TAILORPO)
    return OWN_METHOD if isinstance(name, str) and is_own(name) else name


def _own_settings(method: object) -> object:
    """The settings that belong to a method of one's own."""
    if not isinstance(method, dict):
        return method
    # Only where one is named: the methods need torch, and this module does not.
    from pipeline.methods.own import own_settings

    return own_settings(method)


AnyMethod = Annotated[
    Annotated[TailorPOSettings, Tag(TAILORPO)]
    | Annotated[D3POSettings, Tag("d3po")]
    | Annotated[DDPOSettings, Tag("ddpo")]
    | Annotated[SPOSettings, Tag("spo")]
    | Annotated[DiffusionDPOSettings, Tag("diffusion_dpo")]
    | Annotated[SerializeAsAny[MethodSettings], BeforeValidator(_own_settings), Tag(OWN_METHOD)],
    Discriminator(_name_of),
]
"""The methods a configuration can name: those of the project, and one's own as module:Class."""
