"""LoRAs that this project did not make, in every form in which their makers write them."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

RANK, ALPHA = 3, 6
TARGETS = ["to_q", "to_v", "proj_in", "ff.net.0.proj"]


def trained_unet(model: Path, scale: float = 0.3) -> UNet2DConditionModel:
    """The UNet of a pipeline with an adapter named `style`, of other rank, alpha and layers than our runs' have."""
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    torch.manual_seed(5)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights="gaussian")
    unet.add_adapter(config, adapter_name="style")
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if "lora_B" in name:
                value.normal_(0, scale)
    return unet


def write_diffusers_lora(model: Path, directory: Path, scale: float = 0.3) -> Path:
    """As diffusers' training scripts write it, with an adapter of the text encoder too."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    unet = trained_unet(model, scale)
    torch.manual_seed(6)
    text_config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipeline.text_encoder.add_adapter(text_config, adapter_name="style")
    StableDiffusionPipeline.save_lora_weights(
        directory,
        unet_lora_layers=get_peft_model_state_dict(unet, adapter_name="style"),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder, adapter_name="style"),
        unet_lora_adapter_metadata=unet.peft_config["style"].to_dict(),
        text_encoder_lora_adapter_metadata=text_config.to_dict(),
    )
    return directory


def write_kohya_lora(model: Path, file: Path) -> Path:
    """As kohya's scripts write it: flat names, alpha beside the weights, in half precision."""
    weights = get_peft_model_state_dict(trained_unet(model), adapter_name="style")
    tensors = {}
    for name, value in weights.items():
        layer, kind = name.removesuffix(".weight").rsplit(".", 1)
        flat = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{flat}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = value.half().contiguous()
        tensors[f"{flat}.alpha"] = torch.tensor(float(ALPHA))
    save_file(tensors, file)
    return file


def write_bare_lora(model: Path, directory: Path) -> Path:
    """As the UNet of diffusers saves its own adapter."""
    trained_unet(model).save_lora_adapter(directory, adapter_name="style")
    return directory


def write_peft_lora(model: Path, directory: Path) -> Path:
    """As peft saves a model that it wraps."""
    weights = get_peft_model_state_dict(trained_unet(model), adapter_name="style")
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    wrapped = get_peft_model(unet, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    own = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            stem = name.removesuffix(".weight")
            own[f"base_model.model.{stem}.default.weight"].copy_(value)
    wrapped.save_pretrained(directory)
    return directory
