"""The settings of what a model is asked to draw."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.settings import NonNegativeInt, Settings


class PromptColumnSettings(Settings):
    """Prompts in a column of a data set."""

    path: str
    """A Parquet, CSV, TSV, JSON Lines or JSON file, a directory or pattern of files, the id owner/name of a data set on
    the Hugging Face hub (its copy in Parquet is read), or an hf:// path of files there."""
    column: str = "prompt"
    """Name of the column; of a JSON list of plain strings it is prompt."""


class PromptSplitSettings(Settings):
    """Prompts of `prompts.train` that are held out. A hash of its own text decides for each prompt, so that no prompt
    changes sides when others are added."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Expected share of the prompts that are held out."""
    seed: NonNegativeInt = 0
    """Which ones; apart from the run's seed, so that runs with other seeds hold out the same prompts."""


def _kind_of_source(value: object) -> str:
    return "name or file" if isinstance(value, str) else "data set"


# The tags stand in the place of an error; `config_loading` leaves them out of its messages.
PROMPT_TAGS = ("name or file", "data set")
PromptSource = Annotated[
    Annotated[str, Tag("name or file")] | Annotated[PromptColumnSettings, Tag("data set")],
    Discriminator(_kind_of_source),
]


class PromptSettings(Settings):
    """What the model is asked to draw."""

    train: PromptSource = "animals"
    """Prompts of alignment: animals, demo, a text file with one prompt a line, or the column of a data set."""
    held_out: PromptSource | None = None
    """Prompts of the final evaluation, from the same choices. Where neither this nor `split` is given: those of `train`
    (of demo, a set of its own), and of a data set what `split` holds back by its defaults."""
    split: PromptSplitSettings | None = None
    """Take the held-out prompts from `train`, and train on the others."""

    @model_validator(mode="before")
    @classmethod
    def _choose_held_out(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("held_out") is not None or values.get("split") is not None:
            return values
        train = values.get("train", "animals")
        chosen: dict[str, Any] = {"held_out": train} if isinstance(train, str) else {"split": {}}
        return values | chosen

    @model_validator(mode="after")
    def _held_out_once(self) -> "PromptSettings":
        if self.split is not None and self.held_out is not None:
            raise ValueError(
                "prompts.split takes the held-out prompts from prompts.train, and prompts.held_out names others; set "
                "one of them to null"
            )
        if self.split is not None and self.train == "demo":
            raise ValueError("the demo world holds prompts back by itself; set prompts.split=null")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether the final evaluation names other prompts than those trained on; two sources may still overlap."""
        return self.split is not None or self.held_out != self.train or self.train == "demo"

    @property
    def columns(self) -> dict[str, PromptColumnSettings]:
        """Those of `train` and `held_out` that are columns of data sets, by their name here."""
        sources = {"train": self.train, "held_out": self.held_out}
        return {name: source for name, source in sources.items() if isinstance(source, PromptColumnSettings)}
