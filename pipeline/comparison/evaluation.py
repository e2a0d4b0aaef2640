"""The final evaluation: every adapter of a comparison on the same prompts, the same noise and the same rewards."""

from collections.abc import Sequence

from pipeline.comparison.plan import Plan, PlannedRun
from pipeline.config import RewardSettings
from pipeline.config_loading import parse_as
from pipeline.evaluation.preflight import check_prompts_to_draw
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.prompt_sets import HELD_OUT_FILE
from pipeline.training_record import TrainedReward
from pipeline.worker_settings import PoolSettings

ADAPTER_FOLDER = "adapter"

SHARED = ("model", "sampling", "prompts")
"""Settings in which variants must not differ, since all of them are held against one base model."""


def evaluation_settings(plan: Plan, runs: Sequence[PlannedRun]) -> AdapterEvaluationSettings:
    """The evaluation of the adapters of some runs; each is called by its run's name.

    Raises:
        ValueError: variants that cannot be evaluated together.
    """
    check_evaluation_of_all(plan)
    comparison, shared = plan.comparison, plan.cells[0].settings
    return parse_as(
        AdapterEvaluationSettings,
        {
            "seed": comparison.evaluation.seed,
            "model": shared.model.model_copy(update={"compile": False}),
            "sampling": shared.sampling,
            "adapters": [{"path": str(run.folder / ADAPTER_FOLDER), "name": run.folder.name} for run in runs],
            "prompts": str(plan.folder / HELD_OUT_FILE),
            "images_per_prompt": comparison.evaluation.images_per_prompt,
            "batch_size": shared.evaluation.batch_size,
            "rewards": _rewards(plan),
            "rollout": shared.rollout.model_dump(include=set(PoolSettings.model_fields)),
            "reward_actors": shared.reward_actors,
        },
    )


def evaluation_to_come(plan: Plan) -> AdapterEvaluationSettings:
    """The evaluation of all adapters, before any of them is there.

    Raises:
        ValueError: as `evaluation_settings`.
    """
    return evaluation_settings(plan, plan.runs({cell.label: cell.settings.learning_rate for cell in plan.cells}))


def check_evaluation_of_all(plan: Plan) -> None:
    """Refuse variants that one evaluation cannot hold against one base model, before their first run.

    Raises:
        ValueError: settings that must be shared differ, or no reward is left that no variant is trained on.
    """
    first = plan.cells[0]
    for cell in plan.cells[1:]:
        for name in SHARED:
            if getattr(cell.settings, name) != getattr(first.settings, name):
                raise ValueError(
                    f"{first.label!r} and {cell.label!r} differ in {name}, and all variants are held against one base "
                    f"model, on the same prompts; move what differs in {name} to the overrides of all runs"
                )
    trained = {
        TrainedReward(name=reward.name, path=reward.path)
        for cell in plan.cells
        for reward in cell.settings.rewards_learnt_from
    }
    if all(any(one.is_same(reward) for one in trained) for reward in _rewards(plan)):
        raise ValueError(
            "every reward of the comparison is trained on by a variant, so a hacked reward could not be told from a "
            "better model; add one that none is trained on to evaluation.rewards of the base run"
        )


def check_held_out(plan: Plan, prompts: list[str]) -> None:
    """Refuse held-out prompts that the evaluation after the last run could not use, before the first.

    Raises:
        ValueError: why, and what to change.
    """
    try:
        check_prompts_to_draw(prompts, plan.comparison.evaluation.images_per_prompt, _rewards(plan))
    except ValueError as error:
        raise ValueError(f"the held-out prompts, which all variants are evaluated on: {error}") from None


def _rewards(plan: Plan) -> list[RewardSettings]:
    """All rewards that any variant is trained on or reports, those trained on first."""
    runs = [cell.settings for cell in plan.cells]
    rewards: list[RewardSettings] = [reward for run in runs for reward in run.rewards]
    rewards += [reward for run in runs for reward in run.evaluation.rewards]
    unique: dict[tuple[str, str | None], RewardSettings] = {}
    for reward in rewards:
        unique.setdefault(_key(reward), RewardSettings(name=reward.name, path=reward.path, scale=reward.scale))
    return list(unique.values())


def _key(reward: RewardSettings) -> tuple[str, str | None]:
    return reward.name, reward.path
