"""Everything about a run that can be wrong and can be seen before the first actor starts."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers.utils
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFETENSORS_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from torch import nn
from transformers import CLIPTokenizer

from pipeline.config import ModelSettings, RewardSettings, RunSettings
from pipeline.data_files import locate_data, require_text_column
from pipeline.decoder import check_step_decoder
from pipeline.evaluation.embedder import first_embedder
from pipeline.faults import Faults
from pipeline.method_settings import PairMethodSettings, TailorPOSettings
from pipeline.own_classes import is_own, own_module_path
from pipeline.preference_pairs import check_pair_columns, locate_pairs
from pipeline.prompt_sets import PromptSets, split_prompts
from pipeline.prompt_settings import PromptSettings
from pipeline.prompts import load_held_out_prompts, load_train_prompts
from pipeline.rewards import reward_class
from pipeline.scheduler import load_scheduler
from pipeline.tracking.trackers import check_trackers
from pipeline.transitions import DDIMTransition

logger = logging.getLogger(__name__)

REQUIRED_COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NETWORKS = ("unet", "vae", "text_encoder")
WEIGHT_FILES = (
    *(SAFETENSORS_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    *(transformers.utils.SAFE_WEIGHTS_NAME, transformers.utils.SAFE_WEIGHTS_INDEX_NAME),
    *(transformers.utils.WEIGHTS_NAME, transformers.utils.WEIGHTS_INDEX_NAME),
)
"""What diffusers and transformers read a network's weights, or the list of their files, from."""


def check_run(settings: RunSettings, kept: PromptSets | None = None) -> int:
    """Check the model, the rewards and the prompts of a run; no weights are loaded.

    Args:
        kept: the prompts that lie in the folder of a run that is taken up, whatever has become of their source.

    Returns:
        How many prompts are longer than the tokenizer takes; they are truncated as diffusers does, with a warning.

    Raises:
        ValueError: what is wrong and what to change.
    """
    model = settings.model
    check_model(model)
    check_step_decoder(settings.reward_actors.step_decoder, model.path, model.revision)
    check_target_modules(settings)
    check_rewards(settings)
    check_trackers(settings.tracking)
    scheduler = load_scheduler(model.path, model.revision)
    transition = DDIMTransition.from_scheduler(scheduler, settings.sampling.num_steps, settings.sampling.eta)
    outside = [step for step in settings.trained_grid_steps if not 0 <= step < settings.sampling.num_steps]
    if outside:
        raise ValueError(
            f"method {settings.method.name!r} trains the steps {outside} of a grid that has those from 0 to "
            f"{settings.sampling.num_steps - 1}; its settings' trained_grid_steps must return others"
        )
    if not (transition.std[list(settings.trained_grid_steps)] > 0).all():
        raise ValueError(
            f"method {settings.method.name!r} trains the last step, to which the scheduler of {model.path!r} adds "
            "no noise; in its scheduler/scheduler_config.json set set_alpha_to_one to false"
        )
    if isinstance(settings.method, PairMethodSettings):
        check_pair_columns(locate_pairs(settings.method.data))
    sets = kept or check_prompts(settings.prompts)
    check_scorable(settings, sets.held_out)
    warn_of_unmeasured_diversity(settings)
    warn_of_nothing_held_out(settings)
    prompts = sets.train + sets.held_out
    # Prompts of data sets are counted when they have been read; a tokenizer takes no empty list.
    return warn_of_long_prompts(model, prompts) if prompts else 0


def check_model(model: ModelSettings) -> None:
    """Refuse what is no `StableDiffusionPipeline`.

    Raises:
        ValueError: the directory is missing, is a file, is no diffusers pipeline, or lacks a component; or a directory
            is given a revision.
    """
    path = model.path
    directory = Path(path)
    if directory.is_file():
        raise ValueError(
            f"model.path {path!r} is a single file, not the directory of a pipeline; convert it once by "
            f"`StableDiffusionPipeline.from_single_file({path!r}).save_pretrained(DIRECTORY)` of diffusers, and give "
            "that directory"
        )
    if directory.is_dir() and not (directory / "model_index.json").is_file():
        raise ValueError(
            f"model.path {path!r} is no diffusers pipeline: it has no model_index.json; give the directory that "
            "StableDiffusionPipeline.save_pretrained wrote"
        )
    if not directory.is_dir() and directory.parent != Path() and directory.parent.is_dir():
        raise ValueError(f"model.path {path!r} does not exist; give a StableDiffusionPipeline directory or a hub id")
    if directory.is_dir() and model.revision is not None:
        raise ValueError(
            f"model.revision {model.revision!r} is of a hub id, and model.path {path!r} is a directory of this "
            "machine, which has none; drop it"
        )
    try:
        index: dict[str, Any] = DiffusionPipeline.load_config(path, revision=model.revision)
    except (OSError, ValueError) as error:
        at = f" at the revision {model.revision!r}" * (model.revision is not None)
        raise ValueError(
            f"model.path {path!r} is neither a directory nor a hub id that can be reached{at}: {error}"
        ) from error
    missing = [name for name in REQUIRED_COMPONENTS if index.get(name, (None, None))[0] is None]
    if missing:
        raise ValueError(
            f"model.path {path!r} holds a {index.get('_class_name')} without {', '.join(missing)}; a "
            f"StableDiffusionPipeline with {', '.join(REQUIRED_COMPONENTS)} is needed"
        )
    if index["_class_name"] != "StableDiffusionPipeline":
        raise ValueError(
            f"model.path {path!r} holds a {index['_class_name']}; a StableDiffusionPipeline is needed, since other "
            "pipelines give their networks other inputs"
        )
    absent = [f"{name}/" for name in REQUIRED_COMPONENTS if directory.is_dir() and not (directory / name).is_dir()]
    if absent:
        raise ValueError(f"model.path {path!r} lacks the folder {', '.join(absent)}; copy the pipeline again, whole")
    without = [name for name in NETWORKS if directory.is_dir() and not _has_weights(directory / name)]
    if without:
        found = sorted(file.name for file in (directory / without[0]).iterdir())
        raise ValueError(
            f"model.path {path!r} has no weights in {without[0]}/, which holds {', '.join(found) or 'nothing'}; one of "
            f"{', '.join(WEIGHT_FILES)} is needed: copy the pipeline again, whole, or save one that has variants "
            "alone, such as fp16, anew by `StableDiffusionPipeline.from_pretrained(path, variant=...).save_pretrained`"
        )


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHT_FILES)


def check_prompts(settings: PromptSettings) -> PromptSets:
    """Refuse prompts that cannot be read; columns of data sets are looked for, and read later by Ray Data.

    Returns:
        The prompts that no data set holds.

    Raises:
        ValueError: what is missing, and what to give.
    """
    for role, column in settings.columns.items():
        require_text_column(locate_data(column.path), column.column, f"prompts.{role}.column")
    train = load_train_prompts(settings.train) if isinstance(settings.train, str) else []
    held_out = load_held_out_prompts(settings.held_out) if isinstance(settings.held_out, str) else []
    return split_prompts(train, settings.split) if train and settings.split is not None else PromptSets(train, held_out)


def check_scorable(settings: RunSettings, held_out: list[str]) -> None:
    """Refuse held-out prompts that a reward of the final evaluation has nothing to say about; none is none to refuse.

    Raises:
        ValueError: which reward, which prompt, and what to change.
    """
    if not (held_out and settings.evaluation.images):
        return
    for reward in (*settings.rewards, *settings.evaluation.rewards):
        try:
            reward_class(reward.name).check_prompts(held_out)
        except ValueError as error:
            raise ValueError(
                f"prompts.held_out cannot be scored by {reward.name!r}: {error}; name other prompts, or take that "
                "reward out of evaluation.rewards"
            ) from error


def warn_of_unmeasured_diversity(settings: RunSettings) -> None:
    """A collapse to one picture is the hack that other measures see last."""
    rewards = (*settings.rewards, *settings.evaluation.rewards)
    if settings.evaluation.images and first_embedder(rewards) is None:
        logger.warning(
            "no reward has a CLIP, so the evaluation does not measure diversity; add clip_score, or clip with its "
            "path, to evaluation.rewards"
        )


def warn_of_nothing_held_out(settings: RunSettings) -> None:
    """A reward that is trained on rises when it is hacked, too."""
    trained = {(reward.name, reward.path) for reward in settings.rewards}
    if settings.evaluation.images and {(reward.name, reward.path) for reward in settings.evaluation.rewards} <= trained:
        logger.warning(
            "the evaluation has no reward but what is trained on, and cannot tell better pictures from a hacked "
            "reward; add another to evaluation.rewards"
        )


def check_target_modules(settings: RunSettings) -> None:
    """Refuse names of layers or blocks that the UNet does not have; peft would pass over them in silence.

    Raises:
        ValueError: a name that no linear or convolutional layer ends with, or a block without any of them.
    """
    model = settings.model
    config = UNet2DConditionModel.load_config(model.path, subfolder="unet", revision=model.revision)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    names = [name for name, layer in unet.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    targets = settings.lora.target_modules
    named = [name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        raise ValueError(
            f"lora.target_modules names {', '.join(unknown)}, which no layer of the UNet of {settings.model.path!r} "
            "ends with; to_q, to_k, to_v and to_out.0 are its attention"
        )
    blocks = [block for block in settings.lora.blocks or () if not any(name.startswith(f"{block}.") for name in named)]
    if blocks:
        known = sorted({".".join(name.split(".")[: 1 if name.startswith("mid_block") else 2]) for name in named})
        raise ValueError(
            f"lora.blocks names {', '.join(blocks)}, in which the UNet of {settings.model.path!r} has none of "
            f"lora.target_modules; they are in {', '.join(known)}"
        )


def check_rewards(settings: RunSettings) -> None:
    """Refuse rewards that cannot do what is asked of them.

    Raises:
        ValueError: an unknown name, missing weights, guidance by a reward without gradients, training on a judge; a
            line for each fault.
    """
    faults = Faults()
    with faults.noted():
        _check_trained_rewards(settings)
    for reward in (*settings.rewards, *settings.evaluation.rewards):
        with faults.noted():
            reward_class(reward.name).check_path(reward.path)
    faults.raise_any()


def _check_trained_rewards(settings: RunSettings) -> None:
    trained = [reward_class(reward.name) for reward in settings.rewards]
    for kind in trained:
        if kind.held_out_only:
            raise ValueError(
                f"reward {kind.name!r} is the held-out judge and must not be trained on; put it under "
                "evaluation.rewards"
            )
    if settings.method.needs_gradient and not any(kind.differentiable for kind in trained):
        names = ", ".join(repr(kind.name) for kind in trained)
        tailorpo = isinstance(settings.method, TailorPOSettings)
        who = "method.guidance" if tailorpo else f"method {settings.method.name!r}"
        instead = "remove method.guidance (TailorPO without guidance) or " if tailorpo else ""
        raise ValueError(
            f"{who} needs a differentiable reward, and {names} {'is' if len(trained) == 1 else 'are'} not; "
            f"{instead}choose another reward"
        )


def own_modules(settings: RunSettings) -> list[Path]:
    """Files and packages that a method and rewards of the form module:Class come from; the workers import them too.

    Raises:
        ValueError: such a reward cannot be imported.
    """
    method = [own_module_path(settings.method.name)] if is_own(settings.method.name) else []
    return sorted({*method, *own_modules_of((*settings.rewards, *settings.evaluation.rewards))})


def own_modules_of(rewards: Sequence[RewardSettings]) -> list[Path]:
    """`own_modules` of any rewards.

    Raises:
        ValueError: as `own_modules`.
    """
    names = [reward.name for reward in rewards if is_own(reward.name)]
    for name in names:
        reward_class(name)
    return sorted({own_module_path(name) for name in names})


def warn_of_long_prompts(model: ModelSettings, prompts: list[str]) -> int:
    """Count and warn of prompts that the tokenizer truncates.

    Raises:
        ValueError: the model has no tokenizer files.
    """
    tokenizer = CLIPTokenizer.from_pretrained(model.path, subfolder="tokenizer", revision=model.revision)
    # Without files transformers builds a tokenizer that knows special tokens alone: every prompt would look alike.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(f"model.path {model.path!r} has no tokenizer: put vocab.json and merges.txt in its tokenizer/")
    limit = tokenizer.model_max_length
    long = [prompt for prompt in prompts if len(tokenizer(prompt).input_ids) > limit]
    if long:
        logger.warning(
            "%d of %d prompts are longer than the tokenizer's %d tokens and are truncated, the first being %r",
            len(long),
            len(prompts),
            limit,
            long[0],
        )
    return len(long)
