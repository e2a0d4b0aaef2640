"""What is known of a set of images once it is drawn and scored, batch by batch and joined."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageMeasures:
    """N images and what rewards and statistics make of them.

    Attributes:
        scores: (N, R) float32, a column per reward.
        aspects: (N, A) float32, a column per aspect of the rewards that have some; NaN where the prompt leaves it open.
        statistics: (N, S) float32, a column for each of `image_statistics.IMAGE_STATISTICS`.
        embeddings: (N, D) float32 unit vectors in a CLIP's image space; D is 0 where no CLIP was named.
        images: (N, H, W, 3) uint8.
    """

    scores: NDArray[np.float32]
    aspects: NDArray[np.float32]
    statistics: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class DrawnImages(ImageMeasures):
    """Images of one model, in the order of their samples.

    Attributes:
        prompts: N prompts.
        drift: (N,) float32, how far the model's trajectories are from the base model's; 0 for the base model itself.
    """

    prompts: tuple[str, ...]
    drift: NDArray[np.float32]

    @property
    def groups(self) -> NDArray[np.intp]:
        """The prompt of each image as a number 0..P-1, (N,)."""
        return np.unique(self.prompts, return_inverse=True)[1]


def join_measures(
    batches: Sequence[ImageMeasures], prompts: Sequence[Sequence[str]], drift: Sequence[NDArray[np.float32]]
) -> DrawnImages:
    """Batches in their order as one set.

    Raises:
        ValueError: a batch has another number of images, scores or drifts than prompts; nothing would pair up.
    """
    for batch, own_prompts, own_drift in zip(batches, prompts, drift, strict=True):
        found = {field.name: len(getattr(batch, field.name)) for field in fields(batch)} | {"drift": len(own_drift)}
        wrong = {name: count for name, count in found.items() if count != len(own_prompts)}
        if wrong:
            counts = ", ".join(f"{count} {name}" for name, count in wrong.items())
            raise ValueError(
                f"a batch of {len(own_prompts)} prompts came back with {counts}: a reward must return a score, and a "
                "row of aspects if it has some, for each image (docs/own_rewards.md); any other count is "
                "a fault of the program, to be reported"
            )
    joined = {
        field.name: np.concatenate([getattr(batch, field.name) for batch in batches]) for field in fields(batches[0])
    }
    return DrawnImages(
        **joined, prompts=tuple(text for texts in prompts for text in texts), drift=np.concatenate(drift)
    )
