"""The stages that make the demo from nothing: their order, their length, and where each leaves its result."""

import functools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from pipeline.demo.bundle import half_on_cpu, replace_directory, save_clip, save_judge, save_pipeline, without_origin
from pipeline.demo.grammar import held_out_prompts
from pipeline.demo.judge import JudgeModel
from pipeline.demo.model_card import write_cards
from pipeline.demo.quality import (
    ETA,
    GUIDANCE_SCALE,
    SAMPLING_STEPS,
    base_quality,
    clip_quality,
    judge_quality,
    sample_images,
    vae_quality,
)
from pipeline.demo.tokenizer import build_tokenizer
from pipeline.demo.train_clip import FAMILY, ContrastiveTrainee, train_clip
from pipeline.demo.train_denoiser import ConditionedDenoiser, train_denoiser
from pipeline.demo.train_judge import train_judge
from pipeline.demo.train_vae import refine_decoder, train_vae
from pipeline.demo.training import LoopConfig, finished_seconds
from pipeline.run_folder import write_text

VAE_LOOP = LoopConfig(steps=4000, horizon=6000, learning_rate=2e-3, seed=0, ema_decay=0.995, checkpoint_every=500)
DECODER_LOOP = LoopConfig(steps=2500, learning_rate=1e-3, seed=404, ema_decay=0.995, checkpoint_every=250)
JUDGE_LOOP = LoopConfig(steps=2500, learning_rate=2e-3, seed=101, ema_decay=0.995, checkpoint_every=500)
CLIP_LOOP = LoopConfig(steps=3000, learning_rate=1e-3, seed=202, ema_decay=0.995, checkpoint_every=250)
DENOISER_LOOP = LoopConfig(steps=6500, learning_rate=1e-3, seed=303, ema_decay=0.998, checkpoint_every=500)
VAE_BATCH, JUDGE_BATCH, CLIP_BATCH, DENOISER_BATCH = 16, 64, 96, 64
DENOISER_SCENES = 40_000
DENOISER_SHARDS = 2
MEASURED_PROMPTS, MEASURED_SCENES, GRID_PROMPTS = 384, 1024, 64
TRAINED = ("vae", "decoder", "judge", "clip", "denoiser")


@dataclass(frozen=True)
class Workshop:
    """Where the demo is made: ``output`` receives the models, ``work`` holds checkpoints; ``scale`` shortens it all."""

    output: Path
    work: Path
    device: torch.device
    scale: float = 1.0

    def refuse_another_scale(self) -> None:
        """Refuse a work folder whose finished parts are too small, or too large, for this run.

        Raises:
            ValueError: which scale the folder was begun with.
        """
        note = self.work / "scale.txt"
        begun_with = note.read_text(encoding="utf-8") if note.is_file() else None
        if begun_with is None:
            write_text(note, f"{self.scale:g}")
        elif begun_with != f"{self.scale:g}":
            raise ValueError(
                f"{self.work} was begun with --scale {begun_with}, and this run has {self.scale:g}; give another --work"
            )

    def loop(self, config: LoopConfig) -> LoopConfig:
        """``config`` with its steps scaled, and at least four checkpoints."""
        steps = max(2, round(config.steps * self.scale))
        horizon = None if config.horizon is None else max(2, round(config.horizon * self.scale))
        return replace(
            config, steps=steps, horizon=horizon, checkpoint_every=min(config.checkpoint_every, max(1, steps // 4))
        )

    def batch(self, size: int) -> int:
        """A batch size, cut to one family in very short runs, which only show that everything works."""
        return size if self.scale >= 0.05 else FAMILY

    @functools.cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer, made anew; it is the same each time."""
        return build_tokenizer()

    @functools.cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder of stage 1."""
        return self.load_vae("vae")

    def load_vae(self, name: str) -> AutoencoderKL:
        """An autoencoder of the work folder, frozen, on the device."""
        vae = AutoencoderKL.from_pretrained(self.work / name).eval().requires_grad_(False)
        return vae.to(self.device, memory_format=torch.channels_last)


def make_vae(workshop: Workshop) -> None:
    """Stage 1: the autoencoder."""
    if not (workshop.work / "vae").exists():
        loop = workshop.loop(VAE_LOOP)
        vae = train_vae(loop, workshop.batch(VAE_BATCH), workshop.device, workshop.work / "vae.pt")
        replace_directory(workshop.work / "vae", vae.save_pretrained)


def make_decoder(workshop: Workshop) -> None:
    """Stage 1b: the autoencoder's decoder refined, its latents unchanged."""
    if not (workshop.work / "vae-refined").exists():
        loop = workshop.loop(DECODER_LOOP)
        vae = refine_decoder(loop, workshop.batch(VAE_BATCH), workshop.load_vae("vae"), workshop.work / "decoder.pt")
        replace_directory(workshop.work / "vae-refined", vae.save_pretrained)


def make_judge(workshop: Workshop) -> None:
    """Stage 2: the held-out judge."""
    judge = train_judge(
        workshop.loop(JUDGE_LOOP),
        workshop.batch(JUDGE_BATCH),
        workshop.device,
        workshop.work / "judge.pt",
        lambda step, judge: save_judge(workshop.output / "demo-judge", judge),
    )
    save_judge(workshop.output / "demo-judge", judge)


def make_clip(workshop: Workshop) -> None:
    """Stage 3: the preference reward."""

    def save(step: int, trainee: ContrastiveTrainee) -> None:
        save_clip(workshop.output / "demo-clip", trainee.clip, workshop.tokenizer)

    clip = train_clip(
        workshop.loop(CLIP_LOOP),
        workshop.batch(CLIP_BATCH),
        workshop.tokenizer,
        workshop.device,
        workshop.work / "clip.pt",
        save,
    )
    save_clip(workshop.output / "demo-clip", clip, workshop.tokenizer)


def make_denoiser(workshop: Workshop) -> None:
    """Stage 4: the text encoder and the denoiser, saved together with the autoencoder as a pipeline."""

    def save(step: int, denoiser: ConditionedDenoiser) -> None:
        save_pipeline(workshop.output / "demo", workshop.vae, denoiser, workshop.tokenizer)

    denoiser = train_denoiser(
        workshop.loop(DENOISER_LOOP),
        workshop.batch(DENOISER_BATCH),
        DENOISER_SHARDS if workshop.device.type == "cpu" else 1,
        max(64, round(DENOISER_SCENES * workshop.scale)),
        workshop.vae,
        workshop.tokenizer,
        workshop.device,
        workshop.work / "denoiser.pt",
        save,
    )
    save(workshop.loop(DENOISER_LOOP).steps, denoiser)


def assemble(workshop: Workshop) -> None:
    """Put the refined decoder into the pipeline."""
    refined = without_origin(workshop.load_vae("vae-refined"))
    replace_directory(workshop.output / "demo" / "vae", half_on_cpu(refined).save_pretrained)


def hardware(device: torch.device) -> str:
    """The device's name, or the number of CPU cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores"


def measure(workshop: Workshop) -> None:
    """Stage 5: quality of every network, sample grid and model cards."""
    prompts = held_out_prompts(max(8, round(MEASURED_PROMPTS * min(1.0, workshop.scale))))
    scenes = max(8, round(MEASURED_SCENES * min(1.0, workshop.scale)))
    output = workshop.output
    pipeline = StableDiffusionPipeline.from_pretrained(output / "demo", dtype=torch.float32)
    clip = CLIPModel.from_pretrained(output / "demo-clip", dtype=torch.float32).eval()
    judge = JudgeModel.from_pretrained(output / "demo-judge")
    grid_prompts = held_out_prompts(max(8, round(GRID_PROMPTS * min(1.0, workshop.scale))), seed=1)
    report = {
        "guidance_scale": GUIDANCE_SCALE,
        "sampling_steps": SAMPLING_STEPS,
        "eta": ETA,
        "prompts": len(prompts),
        "scenes": scenes,
        "base": base_quality(pipeline, judge, prompts),
        "vae": vae_quality(pipeline.vae, scenes),
        "clip": clip_quality(clip, workshop.tokenizer, pipeline.vae, scenes),
        "judge": judge_quality(judge, pipeline.vae, scenes),
        "seconds": {name: finished_seconds(workshop.work / f"{name}.pt") for name in TRAINED},
        "hardware": hardware(workshop.device),
        "grid_prompts": grid_prompts,
    }
    samples = sample_images(pipeline, grid_prompts, GUIDANCE_SCALE, seed=1)
    write_cards(output, report, samples)
    print(json.dumps({name: report[name] for name in ("base", "vae", "clip", "judge")}, indent=2), flush=True)
