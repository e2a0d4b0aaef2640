"""Every setting of a comparison, one sentence each."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings import NonNegativeInt, PositiveFloat, PositiveInt, Settings

LearningRates = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class BudgetSettings(Settings):
    """What every run of the comparison may spend."""

    unit: Literal["trajectories", "network_calls", "seconds"]
    """What is counted, as the report counts it: trajectories, forward calls of the network, or seconds of rollouts and
    learning."""
    amount: PositiveFloat
    """How many of them; a run makes as many whole iterations as they buy, and of seconds the one in which they end."""


class RewardChoice(Settings):
    """A reward that every variant is trained on."""

    label: str
    """What it is called in folders and in the report."""
    overrides: tuple[str, ...] = ()
    """Settings that differ from the base run, such as reward.name=clip."""


class VariantSettings(Settings):
    """One of the things that are compared, such as a method."""

    label: str
    """What it is called in folders and in the report."""
    overrides: tuple[str, ...] = ()
    """Settings that differ from the base run, such as "method={name: ddpo}"."""
    learning_rates: LearningRates | None = None
    """Learning rates of its sweep, if not those of `sweep.learning_rates`."""
    not_with: tuple[str, ...] = ()
    """Labels of rewards that it cannot be trained on; the report says that it was left out there."""
    overrides_with: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Further settings with single rewards, by their labels, such as the pairs that a reward preferred."""


class SweepSettings(Settings):
    """The choice of a learning rate for every variant and reward, by short runs of one seed.

    The rise of the trained reward whose interval has the highest lower end wins, on prompts that the final evaluation
    does not use.
    """

    learning_rates: LearningRates
    """Learning rates that are tried, the same for every variant that does not list its own."""
    budget_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """What a run of the sweep may spend, as a share of the budget."""
    seed: NonNegativeInt = 1000
    """The seed of its runs; none of `seeds`, so that the choice favours none of them."""
    images: Annotated[int, Field(ge=2)] = 128
    """Pairs of images that a learning rate is judged by."""
    prompts: str | None = None
    """Prompts they are drawn from: animals, demo, or a text file; by default the prompts trained on. Those of the final
    evaluation are left out."""


class FinalEvaluationSettings(Settings):
    """The evaluation of all adapters: on the held-out prompts of the base run, by every reward that a run names.

    All share one base model, its prompts and its noise; a run of its own, as evaluation.images asks for, is not made.
    """

    images_per_prompt: PositiveInt = 5
    """Images of each prompt, from different noise; diversity needs at least 2."""
    seed: NonNegativeInt = 0
    """The noise of the images, and the resampling of the intervals, follow from this one."""


class ComparisonSettings(Settings):
    """A comparison: every variant is run with every reward and every seed, at the same budget."""

    name: str
    """Name of the comparison; its folder is output_dir/name."""
    output_dir: str = "runs"
    """Where the folder is made."""
    base: str
    """Configuration file of the run that all runs begin from."""
    overrides: tuple[str, ...] = ()
    """Settings of all runs that differ from the base run."""
    variants: Annotated[tuple[VariantSettings, ...], Field(min_length=1)]
    """What is compared."""
    rewards: tuple[RewardChoice, ...] = ()
    """Rewards that all variants are run with; by default that of the base run alone."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """Seeds of the runs of every variant."""
    budget: BudgetSettings
    sweep: SweepSettings | None = None
    """The choice of learning rates; by default there is none, and every run has that of its settings."""
    evaluation: FinalEvaluationSettings = FinalEvaluationSettings()
    parallel: PositiveInt | None = None
    """Runs that go on at once; by default as many as the cluster has room for."""

    @model_validator(mode="after")
    def _labels_make_folders(self) -> "ComparisonSettings":
        for kind, labels in (
            ("variants", [variant.label for variant in self.variants]),
            ("rewards", [reward.label for reward in self.rewards]),
        ):
            slugs = [slug(label) for label in labels]
            for label, own in zip(labels, slugs, strict=True):
                if not own:
                    raise ValueError(
                        f"{kind} has the label {label!r}, which makes no folder name; use a letter or digit"
                    )
                if slugs.count(own) > 1:
                    raise ValueError(f"{kind} has two labels that make the folder name {own!r}; rename one of them")
        return self

    @model_validator(mode="after")
    def _variants_name_rewards(self) -> "ComparisonSettings":
        known = [reward.label for reward in self.rewards]
        for variant in self.variants:
            for setting, labels in (("not_with", variant.not_with), ("overrides_with", variant.overrides_with)):
                for label in labels:
                    if label not in known:
                        raise ValueError(
                            f"variant {variant.label!r} has {setting} {label!r}, which is no label under rewards; "
                            f"known are {', '.join(known) or 'none'}"
                        )
            for label in variant.overrides_with:
                if label in variant.not_with:
                    raise ValueError(
                        f"variant {variant.label!r} has {label!r} under not_with and overrides_with; drop one of them"
                    )
            if known and set(known) <= set(variant.not_with):
                raise ValueError(f"variant {variant.label!r} is not_with every reward, so it is never run; drop it")
        return self

    @model_validator(mode="after")
    def _seeds_and_learning_rates_differ(self) -> "ComparisonSettings":
        _refuse_repeats("seeds", self.seeds)
        if self.sweep is not None:
            _refuse_repeats("sweep.learning_rates", self.sweep.learning_rates)
            if self.sweep.seed in self.seeds:
                raise ValueError(
                    f"sweep.seed={self.sweep.seed} is one of seeds, which the choice would favour; use another"
                )
        for variant in self.variants:
            rates = variant.learning_rates or ()
            _refuse_repeats(f"learning_rates of variant {variant.label!r}", rates)
            if self.sweep is None and len(rates) > 1:
                raise ValueError(
                    f"variant {variant.label!r} lists {len(rates)} learning_rates and there is no sweep to choose by; "
                    "add a section sweep, or leave one"
                )
        return self


def slug(label: str) -> str:
    """A label as part of a folder's name: TailorPO-G becomes tailorpo-g."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _refuse_repeats(name: str, values: Sequence[float]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name} lists {value:g} twice; list it once")
