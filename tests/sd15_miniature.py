"""Stable Diffusion v1.5 at tiny widths: its classes, its blocks, its key names; and its published architecture."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from miniature import sd_scheduler
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.demo.tokenizer import build_tokenizer

# Latents of 8 by 8 and images of 64 by 64 pixels, where the published model has 64 and 512.
SAMPLE_SIZE = 8
TEXT_WIDTH = 16

Components = tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]


def published_components() -> Components:
    """The networks of the published model; make them on the meta device, where they need no memory."""
    return _components(
        unet={"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
        vae={"sample_size": 512, "block_out_channels": (128, 256, 512, 512)},
        text={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    )


def miniature_components() -> Components:
    """The same networks with the same names, random weights, and few channels."""
    tokenizer = build_tokenizer()
    groups = {"norm_num_groups": 8}
    return _components(
        unet={"sample_size": SAMPLE_SIZE, "block_out_channels": (8, 16, 32, 32), "cross_attention_dim": TEXT_WIDTH}
        | groups,
        vae={"sample_size": 8 * SAMPLE_SIZE, "block_out_channels": (8, 16, 32, 32)} | groups,
        text={
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": TEXT_WIDTH,
            "num_attention_heads": 2,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )


def write_sd15_miniature(directory: Path) -> Path:
    """A StableDiffusionPipeline directory, as its makers write it."""
    torch.manual_seed(0)
    unet, vae, text_encoder = miniature_components()
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)
    return directory


def _components(unet: dict[str, Any], vae: dict[str, Any], text: dict[str, Any]) -> Components:
    return (
        UNet2DConditionModel(attention_head_dim=8, **unet),
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=2,
            **vae,
        ),
        CLIPTextModel(CLIPTextConfig(num_hidden_layers=12, max_position_embeddings=77, **text)),
    )
