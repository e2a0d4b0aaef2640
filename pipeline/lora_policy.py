"""A base model that holds any LoRA that `read_lora` reads, one after another: what an evaluation draws with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import AutoConfig, CLIPTextModel

from pipeline.lora_file import LoraFile, attach_lora
from pipeline.policy import CACHED_PROMPTS, Policy


class LoraPolicy(Policy):
    """A `Policy` without an adapter of its own, to be loaded by `LoraPolicy.load(model, None, ...)`.

    The LoRA may change the text encoder too, so the base model's embeddings of prompts are kept apart.
    """

    def __init__(self, *args: Any) -> None:
        """Take ready components, as `Policy` does."""
        super().__init__(*args)
        self._networks: list[Any] = []  # those that the LoRA changes
        self._base_embedding = lru_cache(maxsize=CACHED_PROMPTS)(self._encode)
        self._in_reference = False

    def hold(self, lora: LoraFile) -> None:
        """Load a LoRA in place of the one before, in the precision of the base model, as diffusers does.

        Raises:
            ValueError: it does not fit the model.
        """
        self.release()
        weights = {name: tensor.float() for name, tensor in lora.tensors.items()}
        attach_lora(LoraFile(weights, lora.alphas, lora.metadata), self.unet, self.text_encoder)
        self._networks = [
            network for network in (self.unet, self.text_encoder) if getattr(network, "peft_config", None) is not None
        ]
        for network in self._networks:
            network.to(self.device).eval().requires_grad_(False)

    def release(self) -> None:
        """Be the base model again."""
        if self._networks:
            _pipeline_of(self).unload_lora_weights()
            self._networks = []
        self.forget_embeddings()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base model: every network with its LoRA switched off."""
        for network in self._networks:
            network.disable_adapters()
        self._in_reference = True
        try:
            yield
        finally:
            self._in_reference = False
            for network in self._networks:
                network.enable_adapters()
                # peft turns the adapter's gradients on whenever it enables it.
                network.requires_grad_(False)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """`Policy.encode_prompts`; in `reference` by the text encoder as it was."""
        if not self._in_reference:
            return super().encode_prompts(prompts)
        return torch.stack([self._base_embedding(prompt) for prompt in prompts])


def check_lora_fits(lora: LoraFile, model_path: str, revision: str | None = None) -> None:
    """Refuse a LoRA of another architecture; shapes are compared, no weights of the model are loaded.

    Raises:
        ValueError: which weight does not fit, or how many are for layers that are not there.
    """
    unet_config = UNet2DConditionModel.load_config(model_path, subfolder="unet", revision=revision)
    text_config = AutoConfig.from_pretrained(
        model_path, subfolder="text_encoder", revision=revision, trust_remote_code=False
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        text_encoder = CLIPTextModel(text_config)
    attach_lora(lora, unet, text_encoder)


def _pipeline_of(policy: Policy) -> StableDiffusionPipeline:
    """The networks as diffusers takes LoRA weights out of them again."""
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=policy.text_encoder,
        tokenizer=policy.tokenizer,
        unet=policy.unet,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
