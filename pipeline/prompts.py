"""Prompt sets, and which prompt and which samples an iteration's batches hold."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.demo.grammar import held_out_prompts, train_prompts

# The 45 animals of DDPO, which TailorPO trains and evaluates on.
ANIMALS = (
    "cat",
    "dog",
    "horse",
    "monkey",
    "rabbit",
    "zebra",
    "spider",
    "bird",
    "sheep",
    "deer",
    "cow",
    "goat",
    "lion",
    "tiger",
    "bear",
    "raccoon",
    "fox",
    "wolf",
    "lizard",
    "beetle",
    "ant",
    "butterfly",
    "fish",
    "shark",
    "whale",
    "dolphin",
    "squirrel",
    "mouse",
    "rat",
    "snake",
    "turtle",
    "frog",
    "chicken",
    "duck",
    "goose",
    "bee",
    "pig",
    "turkey",
    "fly",
    "llama",
    "camel",
    "bat",
    "gorilla",
    "hedgehog",
    "kangaroo",
)


@dataclass(frozen=True)
class SampleBatch:
    """Samples that are denoised together: their indices within the iteration and their prompts.

    `data` are the rows, one for each sample, of the data set that an off-line method learns from.
    """

    iteration: int
    samples: tuple[int, ...]
    prompts: tuple[str, ...]
    data: pa.Table | None = None


def load_train_prompts(source: str) -> list[str]:
    """The prompts of alignment: "animals", "demo", or the lines of a text file.

    Raises:
        ValueError: the file does not exist, is not UTF-8, or holds no prompt.
    """
    return train_prompts() if source == "demo" else _load_prompts(source)


def load_held_out_prompts(source: str) -> list[str]:
    """The prompts of evaluation, from the same sources; the demo world keeps a set of its own for this.

    Raises:
        ValueError: the file does not exist, is not UTF-8, or holds no prompt.
    """
    return held_out_prompts() if source == "demo" else _load_prompts(source)


def _load_prompts(source: str) -> list[str]:
    if source == "animals":
        return list(ANIMALS)
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"there is no prompt file {source}; give a text file with one prompt a line, or animals, or demo, or "
            f"{{path: {source}, column: ...}} for the column of a data set"
        )
    # Not at the top: light tasks import this module, and need nothing of the hub.
    from pipeline.data_files import FORMATS

    if path.suffix.lower() in FORMATS:
        raise ValueError(
            f"the prompts of {source} lie in a column of it, which must be named: {{path: {source}, column: ...}}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {source} is not UTF-8 text; save it as UTF-8 ({error})") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"the prompt file {source} is empty; write one prompt a line")
    return prompts


def plan_batch(prompts: list[str], seed: int, iteration: int, batch: int, batch_size: int, batches: int) -> SampleBatch:
    """Batch number `batch` of an iteration of `batches` batches, as `plan_positions` orders the prompts."""
    samples, positions = plan_positions(len(prompts), seed, iteration, batch, batch_size, batches)
    return SampleBatch(iteration, samples, tuple(prompts[position] for position in positions))


def plan_positions(
    count: int, seed: int, iteration: int, batch: int, batch_size: int, batches: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Samples of batch number `batch` of an iteration of `batches` batches, and which of `count` things each takes.

    Iterations walk through the things in a seeded order, a new order for each pass, so that every one is drawn
    equally often. The plan depends on its arguments alone: a retry or a resumed run makes the same batches.
    """
    samples = tuple(range(batch * batch_size, (batch + 1) * batch_size))
    places = [divmod(iteration * batches * batch_size + sample, count) for sample in samples]
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch, _ in places}
    return samples, tuple(int(orders[epoch][place]) for epoch, place in places)
