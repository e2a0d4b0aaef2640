"""Stage 4: the text encoder and the denoiser, trained together on latents of random scenes."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.demo import architectures
from pipeline.demo.captions import describe, leave_open
from pipeline.demo.renderer import draw_scenes, random_attributes
from pipeline.demo.training import (
    LoopConfig,
    backward_in_threads,
    fast_precision,
    multiplies_bfloat16,
    save_atomically,
    train,
)

EMPTY_PROMPT_SHARE = 0.1
LARGEST_SNR = 5.0
SINGLE_SHARE = 0.3
_ENCODING_BATCH = 64


class ConditionedDenoiser(nn.Module):
    """The text encoder and the U-Net as one module, so that one optimiser and one average hold both."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predicted noise (B, C, 8, 8) of latents (B, C, 8, 8) at timesteps (B,) for token ids (B, 32)."""
        embeddings = self.text_encoder(tokens).last_hidden_state
        return self.unet(latents, timesteps, embeddings).sample


def build_denoiser(tokenizer: CLIPTokenizer) -> ConditionedDenoiser:
    """The untrained pair for this tokenizer."""
    text_config = CLIPTextConfig(
        **architectures.TEXT_ENCODER,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return ConditionedDenoiser(CLIPTextModel(text_config), UNet2DConditionModel.from_config(architectures.UNET))


@torch.no_grad()
def encode_scenes(
    vae: AutoencoderKL, count: int, seed: int, device: torch.device, cache: Path
) -> tuple[Tensor, Tensor, Tensor]:
    """Attribute rows (N, 8) and the scaled means and standard deviations (N, C, 8, 8) of their latents.

    Computed once and kept in ``cache``, so that a restarted run does not encode again.
    """
    if not cache.exists():
        generator = torch.Generator().manual_seed(seed)
        rows = random_attributes(count, SINGLE_SHARE, generator)
        means, deviations = [], []
        for index, chunk in enumerate(rows.split(_ENCODING_BATCH)):
            posterior = vae.encode((draw_scenes(chunk, generator) * 2 - 1).to(device)).latent_dist
            means.append((posterior.mean * vae.config.scaling_factor).half().cpu())
            deviations.append((posterior.std * vae.config.scaling_factor).half().cpu())
            if index % 100 == 0:
                print(f"[denoiser] encoded {index * _ENCODING_BATCH}/{count} scenes", flush=True)
        save_atomically({"rows": rows, "means": torch.cat(means), "deviations": torch.cat(deviations)}, cache)
    stored = torch.load(cache, weights_only=True)
    return stored["rows"], stored["means"], stored["deviations"]


def snr_weights(alphas_cumprod: Tensor) -> Tensor:
    """Min-SNR weights min(SNR, 5) / SNR of the squared error of predicted noise, one per timestep (1000,)."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=LARGEST_SNR) / snr


def train_denoiser(
    config: LoopConfig,
    batch_size: int,
    shards: int,
    scenes: int,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    device: torch.device,
    checkpoint: Path,
    on_checkpoint: Callable[[int, ConditionedDenoiser], None] | None = None,
) -> ConditionedDenoiser:
    """Train on ``scenes`` encoded scenes with the noise-prediction loss; a tenth of the prompts is empty.

    The batch is shared among ``shards`` threads.
    """
    torch.manual_seed(config.seed)
    denoiser = build_denoiser(tokenizer).to(device)
    if multiplies_bfloat16(device):
        # In bfloat16 twice as fast as fused attention for so few and narrow heads; in float32 it is slower.
        denoiser.text_encoder.set_attn_implementation("eager")
        denoiser.unet.set_attn_processor(AttnProcessor())
    scheduler = DDIMScheduler(**architectures.SCHEDULER)
    weights = snr_weights(scheduler.alphas_cumprod)
    cache = checkpoint.with_name("latents.pt")
    rows, means, deviations = encode_scenes(vae, scenes, config.seed, device, cache)

    def gradient_function(model: ConditionedDenoiser, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(rows), (batch_size,), generator=generator)
        sampled = torch.randn(means[chosen].shape, generator=generator)
        latents = means[chosen].float() + deviations[chosen].float() * sampled
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(len(weights), (batch_size,), generator=generator)
        noised = scheduler.add_noise(latents, noise, timesteps).to(device)
        prompts = describe(leave_open(rows[chosen], generator), generator)
        kept = torch.rand(batch_size, generator=generator) >= EMPTY_PROMPT_SHARE
        prompts = [prompt if keep else "" for prompt, keep in zip(prompts, kept.tolist(), strict=True)]
        tokens = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids.to(device)
        noise, weight, timesteps = noise.to(device), weights[timesteps].to(device), timesteps.to(device)

        def loss_of(part: slice) -> Tensor:
            with fast_precision(device):
                predicted = model(noised[part], timesteps[part], tokens[part])
            errors = F.mse_loss(predicted.float(), noise[part], reduction="none").mean(dim=(1, 2, 3))
            return (weight[part] * errors).mean()

        return backward_in_threads(model, loss_of, batch_size, shards), {}

    return train("denoiser", denoiser, gradient_function, config, checkpoint, on_checkpoint)
