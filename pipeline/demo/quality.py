"""Measures the quality of every network of the demo on scenes and prompts that no training step drew."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pipeline.demo.captions import describe
from pipeline.demo.degrade import blur
from pipeline.demo.grammar import ATTRIBUTES, UNSTATED, parse_prompt
from pipeline.demo.judge import JudgeModel, all_correct, attributes_correct, stated_attributes
from pipeline.demo.renderer import draw_scenes, random_attributes
from pipeline.demo.train_clip import change_one_attribute, pixel_values, swap_binding, swap_objects

GUIDANCE_SCALE = 3.0
SAMPLING_STEPS = 20
ETA = 1.0
_SEED = 990_001
_CHUNK = 64


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images (B, 3, 64, 64) in [0, 1], encoded to the mean of their latents and decoded again."""
    decoded = [vae.decode(vae.encode(chunk * 2 - 1).latent_dist.mode()).sample for chunk in images.split(_CHUNK)]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)


def vae_quality(vae: AutoencoderKL, count: int) -> dict[str, float]:
    """Mean peak signal-to-noise ratio in dB of reconstructions, and the mean absolute error in [0, 1]."""
    generator = torch.Generator().manual_seed(_SEED)
    images = draw_scenes(random_attributes(count, 1 / 3, generator), generator)
    error = reconstruct(vae, images) - images
    psnr = -10 * error.square().mean(dim=(1, 2, 3)).log10()
    return {"psnr_db": psnr.mean().item(), "mean_absolute_error": error.abs().mean().item()}


@torch.no_grad()
def judge_quality(judge: JudgeModel, vae: AutoencoderKL, count: int) -> dict[str, float]:
    """The share of scenes of which the judge reads every attribute right: as rendered, and as the VAE decodes them."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    rows = random_attributes(count, 1 / 3, generator)
    images = draw_scenes(rows, generator)
    clean = (judge.read(images) == rows).all(dim=1)
    decoded = (judge.read(reconstruct(vae, images)) == rows).all(dim=1)
    return {"clean_all_correct": clean.float().mean().item(), "decoded_all_correct": decoded.float().mean().item()}


def _text_embeddings(clip: CLIPModel, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    tokens = tokenizer(list(captions), padding=True, return_tensors="pt")
    return torch.nn.functional.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)


def near_misses(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For complete (B, 8) rows, the exchanged objects, the exchanged colours and ``count`` one-attribute changes.

    Returns (B, count + 2, 8); where an exchange changes nothing it is replaced by a one-attribute change.
    """
    changed = [change_one_attribute(rows, generator) for _ in range(count + 2)]
    for index, exchange in enumerate((swap_objects(rows), swap_binding(rows))):
        same = (exchange == rows).all(dim=1, keepdim=True)
        changed[index] = torch.where(same, changed[index], exchange)
    return torch.stack(changed, dim=1)


@torch.no_grad()
def clip_quality(
    clip: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, count: int, misses: int = 6
) -> dict[str, float]:
    """How often the right caption, or the right image, beats all its near misses (``misses`` + 2 of them).

    Measured on rendered images, on images blurred by 1.5 pixels, and on decoded ones; ``pairwise`` is the share of
    single comparisons won by the right image over an image one attribute away.
    """
    generator = torch.Generator().manual_seed(_SEED + 2)
    rows = random_attributes(count, 1 / 3, generator)
    wrong = near_misses(rows, misses, generator)
    captions = describe(torch.cat([rows[:, None], wrong], dim=1).flatten(0, 1), generator)
    texts = _text_embeddings(clip, tokenizer, captions).unflatten(0, (count, misses + 3))

    def embed(images: Tensor) -> Tensor:
        features = [clip.get_image_features(pixel_values(chunk)).pooler_output for chunk in images.split(_CHUNK)]
        return torch.nn.functional.normalize(torch.cat(features), dim=-1)

    images = draw_scenes(rows, generator)
    variants = {
        "clean": images,
        "blurred": blur(images, torch.full((count,), 1.5)),
        "decoded": reconstruct(vae, images),
    }
    quality: dict[str, float] = {}
    for name, variant in variants.items():
        similarity = torch.einsum("bd,bkd->bk", embed(variant), texts)
        quality[f"caption_of_{misses + 3}_{name}"] = (similarity.argmax(dim=1) == 0).float().mean().item()
        quality[f"caption_pairwise_{name}"] = (similarity[:, :1] > similarity[:, 1:]).float().mean().item()
    wrong_images = embed(draw_scenes(wrong[:, :2].flatten(0, 1), generator)).unflatten(0, (count, 2))
    right = torch.einsum("bd,bd->b", embed(images), texts[:, 0])
    against = torch.einsum("bkd,bd->bk", wrong_images, texts[:, 0])
    quality["image_pairwise_clean"] = (right[:, None] > against).float().mean().item()
    return quality


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], guidance_scale: float, seed: int
) -> Tensor:
    """One image per prompt by stock DDIM sampling (20 steps, eta 1): float32 (B, 3, 64, 64) in [0, 1]."""
    generator = torch.Generator(pipeline.device).manual_seed(seed)
    pipeline.set_progress_bar_config(disable=True)
    chunks = []
    for start in range(0, len(prompts), _CHUNK):
        output = pipeline(
            list(prompts[start : start + _CHUNK]),
            height=64,
            width=64,
            num_inference_steps=SAMPLING_STEPS,
            guidance_scale=guidance_scale,
            eta=ETA,
            generator=generator,
            output_type="pt",
        )
        chunks.append(output.images.float().cpu())
    return torch.cat(chunks)


def base_quality(
    pipeline: StableDiffusionPipeline,
    judge: JudgeModel,
    prompts: Sequence[str],
    guidance_scale: float = GUIDANCE_SCALE,
    seed: int = _SEED,
) -> dict[str, float]:
    """The judge's verdict on samples for ``prompts``: all right, by kind of prompt, and by stated attribute."""
    stated = stated_attributes(prompts)
    read = judge.read(sample_images(pipeline, prompts, guidance_scale, seed))
    correct = all_correct(read, stated).float()
    single = torch.tensor([parse_prompt(prompt).relation is None for prompt in prompts])
    judged, right = stated != UNSTATED, attributes_correct(read, stated)

    def share_right(*columns: str) -> float:
        """Of what prompts state in these attributes, the share that is right."""
        indices = [ATTRIBUTES.index(column) for column in columns]
        return right[:, indices][judged[:, indices]].float().mean().item()

    return {
        "all_correct": correct.mean().item(),
        "all_correct_single": correct[single].mean().item(),
        "all_correct_pair": correct[~single].mean().item(),
        "layout": share_right("layout"),
        "background": share_right("background"),
        "sizes": share_right("size_0", "size_1"),
        "colours": share_right("colour_0", "colour_1"),
        "shapes": share_right("shape_0", "shape_1"),
    }
