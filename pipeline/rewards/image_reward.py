"""ImageReward (arXiv:2304.05977): a BLIP trained on human rankings of generated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import BertTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pipeline.faults import Faults
from pipeline.rewards.base import Reward
from pipeline.rewards.checkpoint_files import local_file, refuse_missing_path
from pipeline.rewards.clip_preprocessing import ClipPreprocessing
from pipeline.rewards.image_reward_network import ImageRewardNetwork, load_network
from pipeline.rewards.published_files import place_of, require_weights, weights_of

HUB_ID = "THUDM/ImageReward"
WEIGHTS, MED_CONFIG = "ImageReward.pt", "med_config.json"
TOKENIZER_HUB_ID = "google-bert/bert-base-uncased"
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json")

TEXT_LENGTH = 35
"""Tokens of a prompt; shorter ones are padded, longer ones cut."""
MEAN, STANDARD_DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of the raw score, from the authors' code."""
CACHED_PROMPTS = 65_536


class ImageReward(Reward):
    """(raw score - mean) / standard deviation: about N(0, 1) over the pictures of many models, hence scale 1.

    ``path`` is a directory or hub id with the two files that ImageReward publishes, or a file of its weights, whatever
    it is called; med_config.json then comes from the same directory where it lies there, and otherwise from the hub, as
    the tokenizer does.

    The text tower attends to the image in every layer, so nothing of the text but its tokens can be kept from one
    call to the next. The prompt keeps BERT's [CLS] as first token, as in the authors' scoring code (BLIP's own
    image-text matching puts [ENC] there).
    """

    name: ClassVar[str] = "image_reward"
    formula: ClassVar[str] = "(raw score - mean) / deviation"
    usual_scores: ClassVar[str] = "0.65"
    differentiable: ClassVar[bool] = True
    needs_path: ClassVar[bool] = True
    default_path: ClassVar[str | None] = HUB_ID
    weights_mebibytes: ClassVar[int] = 851
    licence: ClassVar[str] = "Apache-2.0"

    def __init__(self, network: ImageRewardNetwork, tokenizer: BertTokenizer) -> None:
        """Take a loaded network, and freeze it.

        Raises:
            ValueError: the tokenizer has another vocabulary than the network.
        """
        side, words = network.visual_encoder.config.image_size, network.text_encoder.config.vocab_size
        if len(tokenizer) != words:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, {MED_CONFIG} says {words}: take the vocabulary of "
                f"{TOKENIZER_HUB_ID}"
            )
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = ClipPreprocessing(
            side, (side, side), tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD), "bicubic"
        )
        self._tokens = lru_cache(maxsize=CACHED_PROMPTS)(self._tokenise)

    @classmethod
    def check_path(cls, path: str | None) -> None:
        """Refuse a path without the weights, or a configuration or a tokenizer that is nowhere.

        Raises:
            ValueError: what is missing, and the command that fetches it. The weights are not read.
        """
        super().check_path(path)
        source = path or HUB_ID
        refuse_missing_path(source)
        faults = Faults()
        with faults.noted():
            require_weights(cls.name, source, WEIGHTS, HUB_ID)
        with faults.noted():
            require_weights(cls.name, cls._config_place(source), MED_CONFIG, HUB_ID)
        with faults.noted():
            place_of(cls.name, source, TOKENIZER_FILES, TOKENIZER_HUB_ID)
        faults.raise_any()

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the checkpoint of a file, directory or hub id; its towers run in ``dtype``.

        The tokenizer is BERT's: that of the directory if it holds one, else the hub's.

        Raises:
            ValueError: a file is missing, damaged, or not what it should be.
        """
        cls.check_path(path)
        source = path or HUB_ID
        weights, med_config = weights_of(source, WEIGHTS), local_file(cls._config_place(source), MED_CONFIG)
        tokenizer = load_tokenizer(place_of(cls.name, source, TOKENIZER_FILES, TOKENIZER_HUB_ID))
        return cls(load_network(weights, med_config, dtype).to(device), tokenizer)

    @classmethod
    def _config_place(cls, source: str) -> str:
        """Where med_config.json is: a directory or hub id has its own, a file has it beside it or is as published."""
        return place_of(cls.name, source, (MED_CONFIG,), HUB_ID) if Path(source).is_file() else source

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (B, 3, H, W) in [0, 1] against ``prompts`` (B). Returns (B,) float32, differentiable."""
        return self.normalised(images, prompts).float()

    def normalised(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the score (B,) in the precision it is computed in: float32, or float64 with a float64 network."""
        assert len(images) == len(prompts), f"{len(images)} images for {len(prompts)} prompts"
        vision = self.network.visual_encoder
        pixel_values = self.preprocessing(images.to(vision.device)).to(vision.dtype)
        input_ids, attention_mask = torch.stack([self._tokens(prompt) for prompt in prompts], dim=1)
        return (self.network(pixel_values, input_ids, attention_mask) - MEAN) / STANDARD_DEVIATION

    def _tokenise(self, prompt: str) -> Tensor:
        """Return the tokens of one prompt and which of them are no padding, (2, TEXT_LENGTH) int64."""
        tokens = self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        )
        return torch.cat([tokens.input_ids, tokens.attention_mask]).to(self.network.visual_encoder.device)


def load_tokenizer(source: str) -> BertTokenizer:
    """Load BERT's tokenizer from a directory or hub id, and add the two tokens that BLIP adds to it.

    A prompt that spells out [DEC] or [ENC] is the only one that notices them.
    """
    tokenizer = BertTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return tokenizer
