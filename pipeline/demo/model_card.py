"""Model cards and the sample grid of the demo, written from measured numbers alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.pixels import to_pixels

_HEADER = """---
license: apache-2.0
---

# {title}

"""

_DATA = """## Data

Scenes of 64x64 pixels drawn on the fly by `pipeline/demo/renderer.py`: one or two of six shapes in seven colours and
two sizes on four backgrounds, left of, right of, above or below each other. No data from elsewhere is used. Prompts are
English phrases of `pipeline/demo/grammar.py`; the network knows nothing else.

"""

_MAKING = """## Making

`python -m jobs.make_demo` makes all models of the demo from nothing with fixed seeds. Training took
{minutes} of wall time on {hardware}, stages side by side. Weights are stored in float16.

"""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["## Measured quality", "", "| what | value |", "| --- | --- |", *lines, ""])


def _card(title: str, introduction: str, minutes: str, hardware: str, rows: Sequence[tuple[str, str]]) -> str:
    making = _MAKING.format(minutes=minutes, hardware=hardware)
    return _HEADER.format(title=title) + introduction + "\n\n" + _DATA + making + _table(rows)


def pipeline_card(quality: dict[str, Any]) -> str:
    """The card of the text-to-image pipeline, from what ``stages.measure`` found."""
    base, vae, seconds = quality["base"], quality["vae"], quality["seconds"]
    minutes = ", ".join(f"{seconds[name] / 60:.0f} min ({name})" for name in ("vae", "decoder", "denoiser"))
    introduction = (
        "A small latent diffusion model that draws scenes of coloured shapes from prompts, as a diffusers "
        "`StableDiffusionPipeline` with Stable Diffusion v1.5's schedule. It is good but not perfect on purpose: the "
        "model to be aligned. Sample with a guidance scale of "
        f"{quality['guidance_scale']:g}, {quality['sampling_steps']} DDIM steps and eta {quality['eta']:g}, as the "
        "measurements below do; `configs/demo.yaml` samples without classifier-free guidance, where fewer prompts are "
        "followed."
        "\n\n![Samples](samples.png)\n\nThe samples are first draws, not chosen; prompts in reading order:\n\n"
        + "\n".join(f"{number}. {prompt}" for number, prompt in enumerate(quality["grid_prompts"], 1))
    )
    rows = [
        (
            f"everything the prompt states is right ({quality['prompts']} held-out prompts)",
            _percent(base["all_correct"]),
        ),
        ("the same, one object", _percent(base["all_correct_single"])),
        ("the same, two objects", _percent(base["all_correct_pair"])),
        *((f"{name} right", _percent(base[name])) for name in ("layout", "background", "sizes", "colours", "shapes")),
        ("autoencoder, peak signal-to-noise ratio", f"{vae['psnr_db']:.1f} dB"),
    ]
    return _card("Demo text-to-image model", introduction, minutes, quality["hardware"], rows)


def clip_card(quality: dict[str, Any]) -> str:
    """The card of the preference reward."""
    introduction = (
        "A `CLIPModel` trained contrastively, with captions and images one attribute away in every batch, on clean, "
        "blurred, blended and noisy scenes. It is the demo's preference reward, loaded like any other CLIP checkpoint."
    )
    rows = [(name.replace("_", " "), _percent(value)) for name, value in quality["clip"].items()]
    minutes = f"{quality['seconds']['clip'] / 60:.0f} min"
    return _card("Demo preference reward", introduction, minutes, quality["hardware"], rows)


def judge_card(quality: dict[str, Any]) -> str:
    """The card of the held-out judge."""
    introduction = (
        "A convolutional classifier that reads layout, background, and the size, colour and shape of each object from "
        "an image. It judges faithfulness to prompts and never serves as a training reward: it was trained with "
        "another seed, architecture and augmentation than the reward, and the job refuses it as one."
    )
    rows = [(name.replace("_", " "), _percent(value)) for name, value in quality["judge"].items()]
    minutes = f"{quality['seconds']['judge'] / 60:.0f} min"
    return _card("Demo scene judge", introduction, minutes, quality["hardware"], rows)


def sample_grid(images: Tensor, columns: int = 8, gap: int = 2) -> Image.Image:
    """Images (N, 3, 64, 64) in [0, 1] as one picture in reading order."""
    side = images.shape[-1] + gap
    grid = Image.new("RGB", (columns * side + gap, -(-len(images) // columns) * side + gap), "white")
    for index, pixels in enumerate(to_pixels(images)):
        grid.paste(Image.fromarray(pixels), (gap + index % columns * side, gap + index // columns * side))
    ImageDraw.Draw(grid).rectangle((0, 0, grid.width - 1, grid.height - 1), outline="gray")
    return grid


def write_cards(output: Path, quality: dict[str, Any], samples: Tensor) -> None:
    """Write each model's README.md and quality.json, and the pipeline's samples.png."""
    for name, card in (("demo", pipeline_card), ("demo-clip", clip_card), ("demo-judge", judge_card)):
        (output / name / "README.md").write_text(card(quality))
    (output / "demo" / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")
    sample_grid(samples).save(output / "demo" / "samples.png", optimize=True)
