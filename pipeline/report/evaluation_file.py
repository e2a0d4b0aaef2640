"""evaluation.json: what an evaluation leaves in a run folder for the report, whoever made it."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.run_folder import SUMMARY_FILE

EVALUATION_FILE = "evaluation.json"

Model = TypeVar("Model", bound=BaseModel)


class EvaluationValues(BaseModel):
    """Finite numbers; keys that the report does not know are left alone, so that the file may say more."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="ignore")


class Interval(EvaluationValues):
    """The 95 % interval of a mean difference, aligned - base."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "Interval":
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


class RewardComparison(Interval):
    """A reward of the aligned model against the base model, over pairs that share prompt and noise."""

    base_mean: float
    aligned_mean: float
    difference: float
    win_rate: Annotated[float, Field(ge=0, le=1)]
    """Share of pairs in which the aligned image scores higher; a tie counts one half."""
    pairs: Annotated[int, Field(gt=0)]


class HackingMeasure(Interval):
    """A property that an honest gain leaves alone, such as diversity or sharpness, of both models."""

    base: float
    aligned: float
    moved: bool | None = None
    """Whether it moved beyond the base model's own spread; None where nobody looked."""


class RunEvaluation(EvaluationValues):
    """The whole file. Rewards and measures are keyed by the name that the report shows."""

    rewards: dict[str, RewardComparison]
    hacking: dict[str, HackingMeasure] = {}
    verdict: str | None = None
    """What the numbers say about reward hacking, in a sentence or a few lines."""


class _Summary(EvaluationValues):
    """The part of summary.json that holds a comparison, for runs without an evaluation.json."""

    evaluation: dict[str, RewardComparison] | None


def read_evaluation(folder: Path) -> RunEvaluation | None:
    """The evaluation of a run: from evaluation.json, or else from summary.json; None where there is none yet.

    Raises:
        ValueError: a file that does not follow the schema; the message names it.
    """
    evaluation_file, summary_file = folder / EVALUATION_FILE, folder / SUMMARY_FILE
    if evaluation_file.is_file():
        return _read(evaluation_file, RunEvaluation)
    if summary_file.is_file():
        rewards = _read(summary_file, _Summary).evaluation
        return None if rewards is None else RunEvaluation(rewards=rewards)
    return None


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()]
        raise ValueError(f"{path} is no evaluation that the report can read: {'; '.join(faults)}") from None
