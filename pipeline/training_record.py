"""training.json beside an exported adapter: what it was trained on, so that an evaluation knows what is held out."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import RewardSettings, RunSettings, SamplingSettings
from pipeline.prompt_settings import PromptSource
from pipeline.rewards import reward_class
from pipeline.rewards.checkpoint_files import directory_of

TRAINING_FILE = "training.json"


class TrainedReward(BaseModel):
    """A reward by what makes it another one: its name, and where its weights lie."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: str | None = None

    def is_same(self, other: RewardSettings) -> bool:
        """Whether `other` scores images as this one does; a path that is written differently, or not, is the same."""
        if self.name != other.name:
            return False
        here, there = _place(self.name, self.path), _place(other.name, other.path)
        # A file of weights may stand for the directory it lies in.
        return there in (here, _folder(here)) or here == _folder(there)


class TrainingRecord(BaseModel):
    """How an adapter was made, as far as an evaluation needs to know."""

    model_config = ConfigDict(frozen=True)

    run: str
    method: str
    base_model: str
    base_revision: str | None = None
    sampling: SamplingSettings
    rewards: tuple[TrainedReward, ...]
    train_prompts: PromptSource


def training_record(settings: RunSettings) -> TrainingRecord:
    """The record of the adapter that a run exports; a method that draws no images was trained on no reward."""
    return TrainingRecord(
        run=settings.name,
        method=settings.method.title,
        base_model=settings.model.path,
        base_revision=settings.model.revision,
        sampling=settings.sampling,
        rewards=tuple(TrainedReward(name=reward.name, path=reward.path) for reward in settings.rewards_learnt_from),
        train_prompts=source if isinstance(source := settings.prompts.train, str) else source.path,
    )


def read_training_record(adapter: str) -> TrainingRecord | None:
    """What lies beside the weights of an adapter; None for one that was not exported by this project.

    Raises:
        ValueError: the file is there and malformed.
    """
    path = Path(adapter)
    file = (path if path.is_dir() else path.parent) / TRAINING_FILE
    if not file.is_file():
        return None
    try:
        return TrainingRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{file} is no training record of this project; move it away, or export again: {error}"
        ) from error


def _place(name: str, path: str | None) -> str | None:
    """Where a reward's weights lie: of one that is given no path, where its kind is published."""
    if path is None:
        return reward_class(name).default_path
    return str(Path(path).resolve()) if Path(path).exists() else path


def _folder(place: str | None) -> str | None:
    return None if place is None else directory_of(place)
