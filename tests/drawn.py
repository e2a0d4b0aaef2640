"""Sets of images as the fleets return them, made up: everything that an evaluation compares."""

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.image_statistics import IMAGE_STATISTICS
from pipeline.evaluation.measured import DrawnImages


def drawn_images(
    scores: NDArray[np.floating],
    prompts: list[str],
    statistics: NDArray[np.floating] | None = None,
    embeddings: NDArray[np.floating] | None = None,
    aspects: NDArray[np.floating] | None = None,
    drift: NDArray[np.floating] | None = None,
    images: NDArray[np.uint8] | None = None,
) -> DrawnImages:
    """N images with scores (N,) or (N, R); what is not given is zero, or has no columns."""
    count = len(prompts)

    def of(values: NDArray[np.floating] | None, columns: int) -> NDArray[np.float32]:
        return np.zeros((count, columns), np.float32) if values is None else np.asarray(values, np.float32)

    return DrawnImages(
        scores=np.asarray(scores, np.float32).reshape(count, -1),
        aspects=of(aspects, 0),
        statistics=of(statistics, len(IMAGE_STATISTICS)),
        embeddings=of(embeddings, 0),
        images=np.zeros((count, 8, 8, 3), np.uint8) if images is None else images,
        prompts=tuple(prompts),
        drift=np.zeros(count, np.float32) if drift is None else np.asarray(drift, np.float32),
    )
