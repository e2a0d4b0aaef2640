"""A hub that holds all that the recipes for Stable Diffusion v1.5 ask for, at a small size under the real ids."""

from pathlib import Path

import torch
from aesthetic_head import published_head
from clip_checkpoints import EMBEDDING, OfflineHub, small_clip, write_clip
from image_reward_checkpoint import published_shapes, write_image_reward
from open_clip_names import open_clip_state
from plain_torch import random_tensors
from sd15_miniature import write_sd15_miniature

CLIP_FILES = ("config.json", "model.safetensors")


def fill_hub(hub: OfflineHub, directory: Path) -> None:
    """Write the checkpoints into `directory`, and put them where the hub's libraries look for them."""
    hub.add("stable-diffusion-v1-5/stable-diffusion-v1-5", *write_sd15_miniature(directory / "sd15").iterdir())

    clip = small_clip()
    files = list(write_clip(_folder(directory, "clip"), clip).iterdir())
    model = [file for file in files if file.name in CLIP_FILES]
    hub.add("openai/clip-vit-large-patch14", *files)
    hub.add("yuvalkirstain/PickScore_v1", *model)
    hub.add("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", *(file for file in files if file not in model))

    torch.save(published_head((EMBEDDING, 16, 8, 4, 2, 1)).state_dict(), directory / "aesthetic-model.pth")
    hub.add("trl-lib/ddpo-aesthetic-predictor", directory / "aesthetic-model.pth")

    wide = small_clip(text_width=2 * 64, vision_width=2 * 80, act="gelu")
    torch.save({"state_dict": open_clip_state(wide)}, directory / "HPS_v2_compressed.pt")
    hub.add("xswu/HPSv2", directory / "HPS_v2_compressed.pt")

    image_reward = write_image_reward(_folder(directory, "image_reward"), random_tensors(published_shapes(), seed=0))
    hub.add("THUDM/ImageReward", image_reward / "ImageReward.pt", image_reward / "med_config.json")
    hub.add("google-bert/bert-base-uncased", image_reward / "vocab.txt")


def _folder(directory: Path, name: str) -> Path:
    folder = directory / name
    folder.mkdir()
    return folder
