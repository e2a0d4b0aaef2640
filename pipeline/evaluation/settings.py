"""Every setting of an evaluation of adapters, one sentence each."""

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config import ModelSettings, RewardSettings, SamplingSettings, label_rewards
from pipeline.prompt_settings import PromptColumnSettings, PromptSource
from pipeline.settings import NonNegativeInt, PositiveInt, Settings
from pipeline.worker_settings import PoolSettings, RewardPoolSettings

# What folders of adapters are called that say nothing about which adapter it is.
COMMON_FOLDERS = {"adapter": "", "adapter_ema": "-ema", "unet": "", "lora": ""}


class AdapterSettings(Settings):
    """An adapter that is compared with the base model."""

    path: str
    """Directory, safetensors file or hub id of a LoRA that diffusers loads, pickled weights excepted."""
    name: str | None = None
    """What tables and folders call it; by default its folder, or the run it lies in."""

    @property
    def label(self) -> str:
        """`name`, or what the path suggests: runs/demo/adapter is demo, style.safetensors is style."""
        if self.name is not None:
            return self.name
        path = Path(self.path)
        if path.name in COMMON_FOLDERS and path.parent.name:
            return path.parent.name + COMMON_FOLDERS[path.name]
        return path.name.removesuffix(".safetensors")


class AdapterEvaluationSettings(Settings):
    """A base model against adapters: the same prompts, the same noise, the same rewards."""

    seed: NonNegativeInt = 0
    """The noise of every image, and the resampling of the intervals, follow from this one."""
    model: ModelSettings
    sampling: SamplingSettings = SamplingSettings()
    adapters: Annotated[tuple[AdapterSettings, ...], Field(min_length=1)]
    """What is compared with the base model."""
    prompts: PromptSource
    """What is drawn: animals, demo (its held-out set), a text file with one prompt a line, or the column of a data
    set."""
    images_per_prompt: PositiveInt = 5
    """Images of each prompt, from different noise; diversity needs at least 2."""
    batch_size: PositiveInt = 16
    """Images denoised together."""
    rewards: Annotated[tuple[RewardSettings, ...], Field(min_length=1)]
    """What scores the images; at least one of them must be one that no adapter was trained on."""
    embedder: RewardSettings | None = None
    """A reward with a CLIP, in whose image space diversity is measured; by default the first such of `rewards`."""
    rollout: PoolSettings = PoolSettings()
    reward_actors: RewardPoolSettings = RewardPoolSettings()

    @model_validator(mode="after")
    def _rewards_differ(self) -> "AdapterEvaluationSettings":
        for label, count in Counter((reward.name, reward.path) for reward in self.rewards).items():
            if count > 1:
                raise ValueError(f"reward {label[0]!r} with path {label[1]!r} is listed twice; list it once")
        return self

    @model_validator(mode="after")
    def _labels_are_names_of_folders(self) -> "AdapterEvaluationSettings":
        for label, count in Counter(adapter.label for adapter in self.adapters).items():
            if count > 1:
                raise ValueError(
                    f"{count} adapters are called {label!r}; tell them apart by names of your own: NAME=DIRECTORY"
                )
            if not label or "/" in label or label.startswith("."):
                raise ValueError(f"an adapter cannot be called {label!r}, which is no name of a folder; give NAME=PATH")
        return self

    @model_validator(mode="after")
    def _adapters_are_exchanged(self) -> "AdapterEvaluationSettings":
        if self.model.compile:
            raise ValueError("model.compile=True: adapters are exchanged in one network; evaluate without compile")
        return self

    @property
    def prompts_title(self) -> str:
        """What is drawn, for a sentence about it."""
        if isinstance(self.prompts, PromptColumnSettings):
            return f"{self.prompts.path} ({self.prompts.column})"
        return self.prompts

    @property
    def reward_labels(self) -> tuple[str, ...]:
        """What `rewards` are called: by name, and path where two share a name."""
        return label_rewards(self.rewards)
