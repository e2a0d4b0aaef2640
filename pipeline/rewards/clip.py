"""Text-image agreement by a CLIP checkpoint: any of them by its path, and what the named rewards share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, CLIPModel, CLIPTokenizer

from pipeline.faults import Faults
from pipeline.rewards.base import Reward
from pipeline.rewards.checkpoint_files import (
    MODEL_WEIGHTS,
    directory_of,
    directory_of_weights,
    refuse_missing_path,
    require_file,
)
from pipeline.rewards.clip_preprocessing import Preprocessing, load_preprocessing

CACHED_PROMPTS = 65_536
"""Text embeddings kept, about 4 kB each; beyond that the least recently used one is computed again."""

ClipLike = TypeVar("ClipLike", bound=CLIPModel)

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
PREPROCESSOR_FILE = "preprocessor_config.json"


class ClipReward(Reward):
    """exp(logit_scale) * cos(image embedding, text embedding).

    The declared scale is 1: the score is a logit of the contrastive softmax the checkpoint was trained with, so one
    unit multiplies the odds by e, whatever the checkpoint. Where its measured spread on a base model's images is
    another, ``reward.scale`` of the configuration overrides.

    Attributes:
        processor_path: hub id of tokenizer and preprocessing for checkpoints without them; a directory that has its own
            keeps them. None where every checkpoint brings its own.
    """

    name: ClassVar[str] = "clip"
    formula: ClassVar[str] = "exp(logit_scale) · cos"
    differentiable: ClassVar[bool] = True
    needs_path: ClassVar[bool] = True
    licence: ClassVar[str] = "that of the checkpoint"
    embeds: ClassVar[bool] = True
    processor_path: ClassVar[str | None] = None

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, preprocessing: Preprocessing) -> None:
        """Take a loaded model, and freeze it.

        Raises:
            ValueError: the preprocessing makes images of another size than the vision tower takes, or the tokenizer
                knows more tokens than the text tower.
        """
        side = model.vision_model.config.image_size
        if preprocessing.crop != (side, side):
            raise ValueError(f"preprocessing gives {preprocessing.crop} pixels, the vision tower takes {(side, side)}")
        vocabulary = model.text_model.config.vocab_size
        if len(tokenizer) > vocabulary:
            raise ValueError(f"the tokenizer makes {len(tokenizer)} tokens, the text tower knows {vocabulary}")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self._text_embedding = lru_cache(maxsize=CACHED_PROMPTS)(self._embed_text)

    @classmethod
    def check_path(cls, path: str | None) -> None:
        """Refuse anything but a CLIP checkpoint whose files are all there; reads the small ones, never the weights.

        Raises:
            ValueError: missing path or file, unreachable hub id, another kind of model, or settings that the
                preprocessing cannot follow.
        """
        super().check_path(path)
        source = cls.checkpoint(path)
        refuse_missing_path(source)
        processor = cls.processor(source)
        faults = Faults()
        with faults.noted():
            cls.check_weights(source)
        with faults.noted():
            require_file(cls.name, processor, TOKENIZER_FILES, cls.processor_path or cls.default_path)
            load_tokenizer(processor)
        with faults.noted():
            cls.check_preprocessing(processor)
        faults.raise_any()

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Load model, tokenizer and preprocessing of the checkpoint ``path``; towers run in ``dtype``.

        Raises:
            ValueError: ``path`` is no CLIP checkpoint, or a part of it is missing.
        """
        cls.check_path(path)
        source = cls.checkpoint(path)
        processor = cls.processor(source)
        model = cls.load_model(source, dtype)
        return cls(model.to(device), load_tokenizer(processor), cls.load_preprocessing(processor, model))

    @classmethod
    def checkpoint(cls, path: str | None) -> str:
        """What is loaded, a directory or hub id: a file of weights stands for the directory it lies in.

        Raises:
            ValueError: transformers would load another file of that directory, or none.
        """
        return directory_of_weights(cls.path_or_default(path))

    @classmethod
    def check_weights(cls, source: str) -> None:
        """Refuse a directory or hub id that holds no whole CLIP model.

        Raises:
            ValueError: config.json or the weights are missing, or are those of another kind of model.
        """
        check_clip_model(cls.name, source, cls.default_path)

    @classmethod
    def check_preprocessing(cls, processor: str) -> None:
        """Refuse a preprocessor configuration that is missing, or that the tensor path cannot follow.

        Raises:
            ValueError: which file or setting it is.
        """
        require_file(cls.name, processor, (PREPROCESSOR_FILE,), cls.processor_path or cls.default_path)
        load_preprocessing(processor)

    @classmethod
    def load_model(cls, source: str, dtype: torch.dtype) -> CLIPModel:
        """Load the weights in ``dtype`` on the CPU.

        Raises:
            ValueError: a weight of the model is missing.
        """
        return load_clip_model(source, dtype)

    @classmethod
    def load_preprocessing(cls, processor: str, model: CLIPModel) -> Preprocessing:
        """Load what turns images into pixel values for ``model``."""
        return load_preprocessing(processor)

    @classmethod
    def processor(cls, source: str) -> str:
        """Where tokenizer and preprocessing come from: beside the weights if they are there, else `processor_path`."""
        directory = directory_of(source)
        own = any((Path(directory) / name).is_file() for name in TOKENIZER_FILES)
        return directory if own or cls.processor_path is None else cls.processor_path

    def factor(self) -> Tensor | float:
        """What multiplies the cosine, in float32 or better."""
        return self.model.logit_scale.exp()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (B, 3, H, W) in [0, 1] against ``prompts`` (B). Returns (B,) float32, differentiable."""
        return self.logits(images, prompts).float()

    def logits(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the score (B,) in the precision it is computed in: float32, or float64 with a float64 model."""
        assert len(images) == len(prompts), f"{len(images)} images for {len(prompts)} prompts"
        text_embeddings = torch.stack([self._text_embedding(prompt) for prompt in prompts])
        return self.factor() * (self.embed_images(images) * text_embeddings).sum(dim=-1)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit image embeddings (B, D) of ``images`` (B, 3, H, W) in [0, 1], in float32 or better; differentiable."""
        pixel_values = self.preprocessing(images.to(self.model.device)).to(self.model.vision_model.dtype)
        features = self.model.get_image_features(pixel_values=pixel_values).pooler_output
        return unit_vectors(features)

    @torch.no_grad()
    def _embed_text(self, prompt: str) -> Tensor:
        """Return the unit text embedding (D,) of one prompt, cut at the length the text tower takes.

        One prompt at a time, padded to full length: the embedding then never depends on which prompts share a batch.
        """
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self.model.text_model.config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        features = self.model.get_text_features(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return unit_vectors(features)[0]


def check_clip_model(reward: str, source: str, hub_id: str | None = None) -> None:
    """Refuse a directory or hub id that is no CLIP model for ``reward``; reads its config.json alone.

    Args:
        hub_id: where such a model is published, for a directory that lacks a part of it.

    Raises:
        ValueError: config.json or the weights are missing, or are those of another kind of model.
    """
    faults = Faults()
    with faults.noted():
        require_file(reward, source, ("config.json",), hub_id)
        _check_model_type(source)
    with faults.noted():
        require_file(reward, source, MODEL_WEIGHTS, hub_id)
    faults.raise_any()


def _check_model_type(source: str) -> None:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"reward.path {source!r} is no CLIP checkpoint: {error}") from error
    if config.model_type != "clip":
        raise ValueError(f"reward.path {source!r} holds a model of type {config.model_type!r}; the reward needs 'clip'")


def load_clip_model(source: str, dtype: torch.dtype) -> CLIPModel:
    """Load the CLIP model of the directory or hub id ``source`` in ``dtype`` on the CPU.

    Raises:
        ValueError: a weight is missing; transformers would make it up, and only warn.
    """
    wide = torch.promote_types(dtype, torch.float32)
    model, report = CLIPModel.from_pretrained(source, dtype=wide, output_loading_info=True)
    absent = sorted(report["missing_keys"])
    if absent:
        raise ValueError(f"{source!r} lacks {len(absent)} weights of its model, among them {', '.join(absent[:3])}")
    return in_precision(model, dtype)


def in_precision(model: ClipLike, dtype: torch.dtype) -> ClipLike:
    """Move ``model``, which is in float32 or better, to ``dtype``, all but its logit scale.

    The scale's exponential would turn the rounding of bfloat16 into 1 % of every score.
    """
    logit_scale = model.logit_scale.data
    model.to(dtype)
    model.logit_scale.data = logit_scale
    return model


def load_tokenizer(path: str) -> CLIPTokenizer:
    """Load the tokenizer of the checkpoint at ``path`` (directory or hub id).

    Raises:
        ValueError: the checkpoint has no tokenizer files.
    """
    tokenizer = CLIPTokenizer.from_pretrained(path)
    # Without files transformers silently builds a tokenizer that knows special tokens alone: every prompt looks alike.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(
            f"{path!r} has no tokenizer: put vocab.json and merges.txt (or tokenizer.json) beside its weights"
        )
    return tokenizer


def unit_vectors(features: Tensor) -> Tensor:
    """Scale ``features`` (B, D) to unit length, in float32 or better: half precision would round the cosine."""
    return normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
