"""The picture of an evaluation shows what changed, for better or worse."""

import numpy as np

from actors.evaluation import PICTURED_PAIRS, Evaluation


def test_the_picture_shows_the_pairs_that_changed_most_either_way() -> None:
    count = PICTURED_PAIRS + 4
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.full((1, 64, 64, 3), 10, np.uint8)
    unchanged = [1, 5, 6, 9]
    changes = np.array([0 if pair in unchanged else (-1) ** pair * (pair + 1) for pair in range(count)], np.float32)
    picture = Evaluation({}, ["a prompt"] * count, images, images, changes).picture()
    # Lettering and frames are grey too, but small.
    shown = {colour[0] // 10 for area, colour in picture.getcolors(1 << 20) if area >= 2 * 64 * 64}
    changed = {pair for pair in range(count) if pair not in unchanged}
    assert len(changed) == PICTURED_PAIRS
    assert shown - {255 // 10} == changed
