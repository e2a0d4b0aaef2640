"""How different the pictures of one prompt are from one another: what is lost when a model draws always the same."""

import numpy as np
from numpy.typing import NDArray


def pairwise_diversity(embeddings: NDArray[np.floating], groups: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean cosine distance 1 - cos over all pairs of images of a prompt, for each prompt.

    Args:
        embeddings: (N, D) unit vectors, one per image.
        groups: (N,) the prompt of each image, 0..P-1.

    Returns:
        (P,), NaN for a prompt with a single image.
    """
    diversity = np.full(int(groups.max()) + 1, np.nan)
    for group in range(len(diversity)):
        own = np.asarray(embeddings[groups == group], dtype=np.float64)
        count = len(own)
        if count > 1:
            # The sum over ordered pairs i != j of cos is |sum of vectors|^2 minus the n squares of single ones.
            cosines = np.square(own.sum(axis=0)).sum() - np.square(own).sum()
            diversity[group] = 1 - cosines / (count * (count - 1))
    return diversity
