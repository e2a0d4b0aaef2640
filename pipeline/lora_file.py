"""Any LoRA in safetensors that diffusers loads, read by diffusers, and as one buffer for the way to the workers."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import CLIPTextModel

from pipeline.rewards.checkpoint_files import find_file, local_file

LORA_NAME = "evaluated"

HUB_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA on the hub."""

NETWORKS = ("unet", "text_encoder")
"""The networks of a StableDiffusionPipeline that a LoRA may change, and the prefixes of their weights in its file."""

UNET_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.", "conv_norm_out.")


@dataclass(frozen=True)
class LoraFile:
    """The content of a LoRA file, in diffusers' names.

    Attributes:
        tensors: name, which begins with `unet.` or `text_encoder.` -> weight in the file's precision.
        alphas: alpha of each layer, where the file has them beside its weights, as kohya's have.
        metadata: arguments of peft's LoraConfig under the prefix of their network, where the file tells them.
    """

    tensors: dict[str, Tensor]
    alphas: dict[str, float] | None
    metadata: dict[str, Any] | None

    def to_buffer(self) -> NDArray[np.uint8]:
        """Everything as one array of bytes (N,), which travels through the object store without a copy."""
        # peft keeps names of layers as sets, which JSON does not have.
        extras = {"alphas": self.alphas, "metadata": self.metadata}
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return np.frombuffer(save(tensors, {"extras": json.dumps(extras, default=sorted)}), dtype=np.uint8)

    @classmethod
    def from_buffer(cls, buffer: NDArray[np.uint8]) -> Self:
        """What `to_buffer` packed."""
        content = buffer.tobytes()
        header_bytes = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_bytes])
        return cls(load(content), **json.loads(header["__metadata__"]["extras"]))


def read_lora(path: str) -> LoraFile:
    """Read a directory, a safetensors file, or `HUB_FILE` of a hub id: diffusers', kohya's or peft's names.

    Raises:
        ValueError: nothing is there, it is no safetensors file, or no LoRA.
    """
    place = _place_of(path)
    try:
        tensors, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(place), use_safetensors=True, return_lora_metadata=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"diffusers cannot read the adapter {path!r}: {type(error).__name__}: {error}") from error
    if not tensors or not all("lora" in name for name in tensors):
        other = next((name for name in tensors if "lora" not in name), "no tensor at all")
        raise ValueError(f"the adapter {path!r} is no LoRA: it holds {other}")
    tensors, metadata = _with_prefix(place, tensors, metadata)
    strangers = [name for name in tensors if name.partition(".")[0] not in NETWORKS]
    if strangers:
        raise ValueError(
            f"{len(strangers)} of {len(tensors)} weights of the adapter {path!r} are of networks that a "
            f"StableDiffusionPipeline does not have, the first being {strangers[0]}; it belongs to another "
            "architecture: give one that was made for Stable Diffusion"
        )
    # Numbers of kohya's files are scalars of NumPy or torch.
    return LoraFile(tensors, {name: float(alpha) for name, alpha in alphas.items()} if alphas else None, metadata)


def attach_lora(lora: LoraFile, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
    """Load a LoRA into networks that hold none.

    Raises:
        ValueError: a weight has another shape than the layer it is for, or is for a layer that is not there.
    """
    networks = {"unet": unet, "text_encoder": text_encoder}
    loaders = {
        "unet": StableDiffusionPipeline.load_lora_into_unet,
        "text_encoder": StableDiffusionPipeline.load_lora_into_text_encoder,
    }
    for prefix, network in networks.items():
        names = [name for name in lora.tensors if name.startswith(f"{prefix}.")]
        if not names:
            continue
        try:
            loaders[prefix](
                dict(lora.tensors),
                network_alphas=dict(lora.alphas) if lora.alphas else None,
                adapter_name=LORA_NAME,
                metadata=dict(lora.metadata) if lora.metadata else None,
                # A network without values is given the file's tensors themselves, since nothing can be copied into it.
                low_cpu_mem_usage=network.device.type == "meta",
                **{prefix: network},
            )
        except (RuntimeError, ValueError, KeyError) as error:
            lines = str(error).strip().splitlines()
            raise ValueError(
                f"it does not fit the {prefix} of the model: {' '.join(line.strip() for line in lines[:2])}"
            ) from error
        # diffusers passes over weights of layers that the network does not have, with a warning at most.
        held = len(get_peft_model_state_dict(network, adapter_name=LORA_NAME))
        if held != len(names):
            raise ValueError(
                f"{len(names) - held} of {len(names)} weights are for layers that the {prefix} does not have"
            )


def _place_of(path: str) -> Path:
    """Where a LoRA lies on this machine; one of the hub is downloaded if it is not in the cache.

    Raises:
        ValueError: it is nowhere.
    """
    place = Path(path)
    if place.is_dir() and not list(place.glob("*.safetensors")):
        raise ValueError(f"the adapter {path!r} has no .safetensors file; pickled weights run code, and are not loaded")
    if place.exists():
        return place
    if place.parent.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise ValueError(f"there is no adapter {path!r}; give a directory, a .safetensors file or a hub id of a LoRA")
    if find_file(path, (HUB_FILE,)) is None:
        raise ValueError(
            f"the adapter {path!r} is no directory, and {HUB_FILE} of it cannot be had from the hub or its cache; "
            "fetch it where the hub can be reached, by `hf download`, and give the file"
        )
    return local_file(path, HUB_FILE)


def _with_prefix(
    place: Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Names of a UNet saved by itself, by peft or by diffusers, as they are in a pipeline's file."""
    bare = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    if not all(name.startswith(UNET_BLOCKS) for name in bare):
        return tensors, metadata
    if (place / "adapter_config.json").is_file():
        metadata = LoraConfig.from_pretrained(str(place)).to_dict()
    prefixed = None if metadata is None else {f"unet.{key}": value for key, value in metadata.items()}
    return {f"unet.{name}": tensor for name, tensor in bare.items()}, prefixed
