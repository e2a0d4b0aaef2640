"""The adapter's weights: as one flat vector between actors, as a LoRA directory for diffusers."""

import shutil
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError

from pipeline.config import LoraSettings
from pipeline.policy import ADAPTER_NAME, adapter_config, adapter_parameters_of
from pipeline.training_record import TRAINING_FILE, TrainingRecord

CARD_FILE = "README.md"


class Adapted(Protocol):
    """A network with an adapter: a `Policy`, or a `BareAdapter`."""

    unet: UNet2DConditionModel

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The LoRA parameters by name, float32, in the order of their names."""


class BareAdapter:
    """An adapter without the weights of its base model: what the driver exports, on a machine that may not have them.

    Attributes:
        unet: the network, of which only the adapter's parameters hold numbers (float32, on the CPU).
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Take a network with an adapter; `BareAdapter.make` is the usual way."""
        self.unet = unet

    @classmethod
    def make(cls, model_path: str, lora: LoraSettings, revision: str | None = None) -> Self:
        """Read the configuration of the model `model_path`, and add an adapter of zeros."""
        config = UNet2DConditionModel.load_config(model_path, subfolder="unet", revision=revision)
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
            unet.add_adapter(adapter_config(lora), adapter_name=ADAPTER_NAME)
        zeros = {name: torch.zeros(value.shape) for name, value in adapter_parameters_of(unet).items()}
        unet.load_state_dict(zeros, strict=False, assign=True)
        return cls(unet)

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The LoRA parameters by name, float32, in the order of their names."""
        return adapter_parameters_of(self.unet)


def flatten_adapter(policy: Adapted) -> NDArray[np.float32]:
    """All LoRA parameters as one vector (N,) float32, in the order of their names."""
    return torch.cat([value.detach().flatten() for value in policy.adapter_parameters().values()]).cpu().numpy().copy()


def load_flat_adapter(policy: Adapted, flat: NDArray[np.float32]) -> None:
    """Set the LoRA parameters from `flatten_adapter`'s vector.

    Raises:
        ValueError: the vector is of another adapter: rank, target modules or base model differ.
    """
    parameters = policy.adapter_parameters()
    size = sum(value.numel() for value in parameters.values())
    if flat.shape != (size,):
        raise ValueError(
            f"the adapter has {size} weights but {flat.shape} were given; lora.rank, lora.target_modules and "
            "model.path must be those of the weights"
        )
    # A copy, because what comes out of the object store is read-only.
    source = torch.from_numpy(flat.copy())
    with torch.no_grad():
        for value, chunk in zip(
            parameters.values(), source.split([value.numel() for value in parameters.values()]), strict=True
        ):
            value.copy_(chunk.view_as(value))


def export_adapter(policy: Adapted, directory: Path, model_card: str, record: TrainingRecord) -> None:
    """Write the adapter so that `StableDiffusionPipeline.load_lora_weights(directory)` loads it.

    The directory holds pytorch_lora_weights.safetensors, with rank and alpha in its metadata, README.md with
    `model_card`, and training.json, which tells an evaluation what was trained on. It appears whole or not at all.

    Raises:
        OSError: the disk refuses.
    """
    temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    # Names stay peft's. diffusers has its own (to_q.lora.down) for attention alone, and its loader, which judges a file
    # by its first name, silently drops the attention layers of a file that mixes both.
    weights = get_peft_model_state_dict(policy.unet, adapter_name=ADAPTER_NAME)
    try:
        StableDiffusionPipeline.save_lora_weights(
            temporary,
            unet_lora_layers={name: value.detach().cpu().contiguous() for name, value in weights.items()},
            safe_serialization=True,
            unet_lora_adapter_metadata=policy.unet.peft_config[ADAPTER_NAME].to_dict(),
        )
    except SafetensorError as error:
        raise OSError(f"{temporary}: {error}") from error
    (temporary / CARD_FILE).write_text(model_card, encoding="utf-8")
    (temporary / TRAINING_FILE).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
