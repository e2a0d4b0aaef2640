"""Human Preference Score v2 and v2.1: CLIP ViT-H/14 trained on rankings of generated images."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from transformers import CLIPModel

from pipeline.rewards.checkpoint_files import find_file, local_file, read_state_dict, require_file
from pipeline.rewards.clip import ClipReward, check_clip_model
from pipeline.rewards.clip_preprocessing import PaddedPreprocessing
from pipeline.rewards.open_clip_checkpoint import load_open_clip
from pipeline.rewards.pickscore import CLIP_H


class HPSv2(ClipReward):
    """100 * cos by HPS v2.0 (Wu et al. 2023), whose scores are not comparable with those of v2.1.

    ``path`` is the file that HPSv2 publishes, in the names of open_clip; a directory or hub id that holds it; or one
    that holds a converted CLIPModel, of which nothing says the version. The declared scale is 1, a round figure for how
    far images of one base model lie apart.

    Attributes:
        weights_file: name of the published file.
    """

    name: ClassVar[str] = "hpsv2"
    formula: ClassVar[str] = "100 · cos"
    usual_scores: ClassVar[str] = "27.5"
    default_path: ClassVar[str | None] = "xswu/HPSv2"
    processor_path: ClassVar[str | None] = CLIP_H
    weights_mebibytes: ClassVar[int | None] = 1881
    licence: ClassVar[str] = "Apache-2.0"
    weights_file: ClassVar[str] = "HPS_v2_compressed.pt"
    scale: float = 1.0

    @classmethod
    def checkpoint(cls, path: str | None) -> str:
        """What is loaded: the published file, or a directory or hub id."""
        return cls.path_or_default(path)

    @classmethod
    def check_weights(cls, source: str) -> None:
        """Refuse what holds neither the published file nor a CLIPModel, and the file of another version.

        Raises:
            ValueError: what is missing, or which reward the file belongs to.
        """
        other = {kind.weights_file: kind.name for kind in (HPSv2, HPSv21) if kind is not cls}
        if Path(source).name in other:
            raise ValueError(f"reward {cls.name!r} was given {source!r}, the weights of {other[Path(source).name]!r}")
        if Path(source).is_file():
            return
        if find_file(source, (cls.weights_file, "config.json")) == "config.json":
            check_clip_model(cls.name, source)  # nobody publishes one where the reward's own file is
        else:
            require_file(cls.name, source, (cls.weights_file,), cls.default_path)

    @classmethod
    def load_model(cls, source: str, dtype: torch.dtype) -> CLIPModel:
        """Load the published file, or a converted CLIPModel, in ``dtype`` on the CPU.

        Raises:
            ValueError: the file is no state dict of an open_clip CLIP, or the CLIPModel is not whole.
        """
        if Path(source).is_file():
            return load_open_clip(read_state_dict(Path(source)), dtype)
        if find_file(source, (cls.weights_file,)):
            return load_open_clip(read_state_dict(local_file(source, cls.weights_file)), dtype)
        return super().load_model(source, dtype)

    @classmethod
    def check_preprocessing(cls, processor: str) -> None:
        """Nothing to check: HPSv2 prepares images in one way, whatever a preprocessor configuration says."""

    @classmethod
    def load_preprocessing(cls, processor: str, model: CLIPModel) -> PaddedPreprocessing:
        """Return HPSv2's own preprocessing at the size that ``model`` takes."""
        return PaddedPreprocessing(model.vision_model.config.image_size)

    def factor(self) -> float:
        """What multiplies the cosine."""
        return 100.0


class HPSv21(HPSv2):
    """100 * cos by HPS v2.1, trained on better data; its scores spread wider, and the declared scale is 2."""

    name: ClassVar[str] = "hpsv2.1"
    usual_scores: ClassVar[str] = ""
    weights_file: ClassVar[str] = "HPS_v2.1_compressed.pt"
    scale: float = 2.0
