"""A diffusers text-to-image model with a LoRA adapter: the policy, and with the adapter off, the reference."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Self

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline.config import LoraSettings, ModelSettings, SamplingSettings
from pipeline.devices import resolve_device, resolve_dtype
from pipeline.scheduler import load_scheduler
from pipeline.transitions import DDIMTransition

logger = logging.getLogger(__name__)

ADAPTER_NAME = "default"

CACHED_PROMPTS = 2048
"""Text embeddings kept, 118 kB each for SD v1.5 in half precision; the one used longest ago makes room."""


class Policy:
    """The network of a `StableDiffusionPipeline`, its text encoder and its sampling grid.

    Latents go in and come out as float32 (B, C, H, W) on `device`, whatever the network's own dtype.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        transition: DDIMTransition,
        guidance_scale: float,
    ) -> None:
        """Take ready components; `Policy.load` is the usual way."""
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.transition = transition
        self.guidance_scale = guidance_scale
        # Where the network lives, and its precision. diffusers finds them by walking through the whole network: 8 ms.
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype
        self._network: Any = unet
        self._embedding = lru_cache(maxsize=CACHED_PROMPTS)(self._encode)
        self._frozen = False

    @classmethod
    def load(cls, model: ModelSettings, lora: LoraSettings | None, sampling: SamplingSettings, seed: int) -> Self:
        """Load a `StableDiffusionPipeline` directory or hub id and add a fresh adapter; none where `lora` is None.

        The adapter's random half depends on `seed` alone and its other half is zero, so the policy starts as the
        reference. Only the adapter has gradients; it is float32 on a base of any dtype.
        """
        device, dtype = resolve_device(model.device), resolve_dtype(model.dtype)
        # transformers and diffusers choose scaled-dot-product attention by themselves on torch 2.
        place: dict[str, Any] = {"pretrained_model_name_or_path": model.path, "revision": model.revision}
        unet = UNet2DConditionModel.from_pretrained(**place, subfolder="unet", torch_dtype=dtype)
        text_encoder = CLIPTextModel.from_pretrained(**place, subfolder="text_encoder", dtype=dtype)
        tokenizer = CLIPTokenizer.from_pretrained(**place, subfolder="tokenizer")
        scheduler = load_scheduler(model.path, model.revision)
        transition = DDIMTransition.from_scheduler(scheduler, sampling.num_steps, sampling.eta)

        unet.requires_grad_(False)
        text_encoder.requires_grad_(False)
        if lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                unet.add_adapter(adapter_config(lora), adapter_name=ADAPTER_NAME)
            cast_training_params(unet, dtype=torch.float32)
        unet.to(device).eval()
        text_encoder.to(device).eval()
        if model.channels_last:
            unet.to(memory_format=torch.channels_last)
        policy = cls(unet, text_encoder, tokenizer, transition, sampling.guidance_scale)
        if model.compile:
            policy._network = torch.compile(unet)
        return policy

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        return latent_shape_of(self.unet.config)

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The LoRA parameters by name, float32, in the order of their names."""
        return adapter_parameters_of(self.unet)

    def freeze(self) -> None:
        """Turn off the adapter's gradients: a rollout differentiates with respect to latents only."""
        self._frozen = True
        self.unet.requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The model before fine-tuning: the same network with its adapter switched off."""
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()
            if self._frozen:
                # peft turns the adapter's gradients on whenever it enables it.
                self.unet.requires_grad_(False)

    def predict(self, x_t: Tensor, step: int | Tensor, prompts: Sequence[str]) -> Tensor:
        """`forward` without a graph."""
        with torch.no_grad():
            return self.forward(x_t, step, prompts)

    def predict_reference(self, x_t: Tensor, step: int | Tensor, prompts: Sequence[str]) -> Tensor:
        """`predict` of the reference model."""
        with self.reference():
            return self.predict(x_t, step, prompts)

    def forward(self, x_t: Tensor, step: int | Tensor, prompts: Sequence[str]) -> Tensor:
        """The network's output with classifier-free guidance, eps_u + s (eps_c - eps_u).

        At a guidance scale of 1 only the conditional branch runs.

        Args:
            x_t: (B, C, H, W) noisy latents.
            step: grid step, an int or (B,) int64.
            prompts: B prompts.

        Returns:
            (B, C, H, W) float32.
        """
        timesteps = self.transition.timesteps[step if isinstance(step, int) else step.cpu()].to(self.device)
        timesteps = timesteps.expand(len(x_t))
        conditional = self.encode_prompts(prompts)
        if self.guidance_scale == 1.0:
            return self._call_network(x_t, timesteps, conditional)
        unconditional = self.encode_prompts([""]).expand_as(conditional)
        output = self._call_network(
            torch.cat([x_t, x_t]), torch.cat([timesteps, timesteps]), torch.cat([unconditional, conditional])
        )
        output_unconditional, output_conditional = output.chunk(2)
        return output_unconditional + self.guidance_scale * (output_conditional - output_unconditional)

    def forward_conditional(self, x_t: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """The network's output without classifier-free guidance, at any diffusion times.

        Args:
            x_t: (B, C, H, W) noisy latents.
            timesteps: (B,) int64 times of the noise schedule, not indices into the sampling grid.
            prompts: B prompts.

        Returns:
            (B, C, H, W) float32.
        """
        return self._call_network(x_t, timesteps.to(self.device), self.encode_prompts(prompts))

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings (B, tokens, width) in the text encoder's dtype; a prompt is encoded once."""
        # One by one: an embedding must not depend, to the last bit, on the company it was encoded in.
        return torch.stack([self._embedding(prompt) for prompt in prompts])

    def forget_embeddings(self) -> None:
        """Encode every prompt anew from now on; whoever changes the text encoder calls it."""
        self._embedding.cache_clear()

    def _encode(self, prompt: str) -> Tensor:
        length = self.tokenizer.model_max_length
        if len(self.tokenizer(prompt).input_ids) > length:
            logger.warning("prompt is longer than the tokenizer's %d tokens and is truncated: %r", length, prompt)
        tokens = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return self.text_encoder(tokens.input_ids.to(self.device))[0][0]

    def _call_network(self, x_t: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        output = self._network(x_t.to(self.dtype), timesteps, encoder_hidden_states=embeddings, return_dict=False)
        return output[0].float()


def latent_shape_of(unet_config: Any) -> tuple[int, int, int]:
    """(C, H, W) of one latent, whose side or sides a UNet's configuration calls sample_size."""
    size = unet_config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return unet_config.in_channels, height, width


def adapter_parameters_of(unet: UNet2DConditionModel) -> dict[str, torch.nn.Parameter]:
    """The LoRA parameters of a network by name, in the order of their names."""
    parameters = {name: value for name, value in unet.named_parameters() if ".lora_" in name}
    return dict(sorted(parameters.items()))


def adapter_config(lora: LoraSettings) -> LoraConfig:
    """The adapter for peft: one half Gaussian and the other zero, so that it begins as no change."""
    modules: list[str] | str = list(lora.target_modules)
    if lora.blocks is not None:
        blocks, names = ("|".join(map(re.escape, choices)) for choices in (lora.blocks, lora.target_modules))
        modules = rf"({blocks})\..*\b({names})"
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=modules, init_lora_weights="gaussian")
