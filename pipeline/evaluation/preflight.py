"""Everything about an evaluation that can be wrong and can be seen before the first actor starts."""

import logging
from collections.abc import Sequence

from pipeline.config import RewardSettings
from pipeline.data_files import locate_data, require_text_column
from pipeline.decoder import check_step_decoder
from pipeline.evaluation.embedder import embeds_images, first_embedder
from pipeline.evaluation.settings import AdapterEvaluationSettings
from pipeline.faults import Faults
from pipeline.lora_file import read_lora
from pipeline.lora_policy import check_lora_fits
from pipeline.preflight import check_model, warn_of_long_prompts
from pipeline.prompt_settings import PromptColumnSettings
from pipeline.prompts import load_held_out_prompts
from pipeline.rewards import reward_class
from pipeline.scheduler import load_scheduler
from pipeline.training_record import TrainingRecord, read_training_record
from pipeline.transitions import DDIMTransition

logger = logging.getLogger(__name__)


def check_evaluation(settings: AdapterEvaluationSettings) -> int:
    """Check the model, the adapters, the rewards and the prompts of an evaluation.

    Returns:
        How many prompts are longer than the tokenizer takes.

    Raises:
        ValueError: what is wrong and what to change.
    """
    model = settings.model
    check_model(model)
    check_step_decoder(settings.reward_actors.step_decoder, model.path, model.revision)
    scheduler = load_scheduler(model.path, model.revision)
    DDIMTransition.from_scheduler(scheduler, settings.sampling.num_steps, settings.sampling.eta)
    _check_rewards(settings)
    prompts = _prompts_at_hand(settings)
    _check_something_is_held_out(settings)
    for adapter in settings.adapters:
        try:
            check_lora_fits(read_lora(adapter.path), model.path, model.revision)
        except ValueError as error:
            raise ValueError(
                f"adapter {adapter.label!r} ({adapter.path}) and model {model.path!r}: {error}; give the model that "
                "the adapter was made for by --model, or leave the adapter out"
            ) from error
    return warn_of_long_prompts(model, prompts)


def check_drawn_prompts(settings: AdapterEvaluationSettings, prompts: list[str]) -> None:
    """Refuse prompts that no interval can be had from, or that a reward cannot score.

    Raises:
        ValueError: why, and what to change.
    """
    try:
        check_prompts_to_draw(prompts, settings.images_per_prompt, settings.rewards)
    except ValueError as error:
        raise ValueError(f"prompts {settings.prompts_title}: {error}") from None


def check_prompts_to_draw(prompts: list[str], images_per_prompt: int, rewards: Sequence[RewardSettings]) -> None:
    """As `check_drawn_prompts`."""
    if len(prompts) * images_per_prompt < 2:
        raise ValueError("there is one prompt: set images_per_prompt to 2 or more, for an interval")
    for reward in rewards:
        reward_class(reward.name).check_prompts(prompts)


def held_out_rewards(settings: AdapterEvaluationSettings) -> list[str]:
    """Labels of the rewards that no adapter says it was trained on."""
    records = [record for record in _records(settings).values() if record is not None]
    return [
        label
        for reward, label in zip(settings.rewards, settings.reward_labels, strict=True)
        if not any(_trained_on(record, reward) for record in records)
    ]


def _prompts_at_hand(settings: AdapterEvaluationSettings) -> list[str]:
    """The prompts, checked; of a data set, which is read later by Ray Data, only the column is looked for."""
    if isinstance(settings.prompts, PromptColumnSettings):
        require_text_column(locate_data(settings.prompts.path), settings.prompts.column, "prompts.column")
        return []
    prompts = load_held_out_prompts(settings.prompts)
    check_drawn_prompts(settings, prompts)
    return prompts


def _check_rewards(settings: AdapterEvaluationSettings) -> None:
    faults = Faults()
    for reward in settings.rewards:
        with faults.noted():
            reward_class(reward.name).check_path(reward.path)
    with faults.noted():
        _check_embedder(settings)
    faults.raise_any()


def _check_embedder(settings: AdapterEvaluationSettings) -> None:
    if settings.embedder is None and first_embedder(settings.rewards) is None:
        logger.warning("no reward has a CLIP, so diversity is not measured; name one by embedder.name and .path")
    if settings.embedder is not None:
        if not embeds_images(settings.embedder):
            raise ValueError(
                f"embedder.name={settings.embedder.name!r} embeds no images; clip, clip_score, pickscore, hpsv2 and "
                "aesthetic do"
            )
        reward_class(settings.embedder.name).check_path(settings.embedder.path)


def _check_something_is_held_out(settings: AdapterEvaluationSettings) -> None:
    records = _records(settings)
    for label, record in records.items():
        if record is None:
            logger.warning("adapter %r does not say what it was trained on: any of the rewards may be it", label)
        elif record.base_model != settings.model.path:
            logger.warning(
                "adapter %r was trained on %r and is evaluated on %r", label, record.base_model, settings.model.path
            )
    if not held_out_rewards(settings):
        named = ", ".join(settings.reward_labels)
        raise ValueError(
            f"every reward named ({named}) is one that an adapter was trained on, so a hacked reward could not be told "
            "from a better model; add one that none was trained on (docs/rewards.md lists them)"
        )


def _records(settings: AdapterEvaluationSettings) -> dict[str, TrainingRecord | None]:
    return {adapter.label: read_training_record(adapter.path) for adapter in settings.adapters}


def _trained_on(record: TrainingRecord, reward: RewardSettings) -> bool:
    return any(trained.is_same(reward) for trained in record.rewards)
