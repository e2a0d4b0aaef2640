"""The prompts of a run: what it trains on and what it holds out, cleaned, split, and kept in its folder."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.prompt_settings import PromptSettings, PromptSource, PromptSplitSettings
from pipeline.run_folder import write_json, write_text

STATEMENT = "prompts.json"
TRAIN_FILE, HELD_OUT_FILE = "prompts/train.txt", "prompts/held_out.txt"


@dataclass(frozen=True)
class PromptSets:
    """The prompts that a run trains on, and those of its sample grids and its evaluation."""

    train: list[str]
    held_out: list[str]

    def on_both_sides(self) -> list[str]:
        """Held-out prompts that are trained on too, whatever their case."""
        trained = {prompt.casefold() for prompt in self.train}
        return [prompt for prompt in self.held_out if prompt.casefold() in trained]


def clean_prompts(texts: Iterable[str | None], source: str) -> list[str]:
    """Prompts on one line each, without missing, blank and repeated ones, in the order of their first appearance.

    Texts that differ in case alone are the same prompt, because CLIP's tokenizer takes them for the same.

    Raises:
        ValueError: none is left.
    """
    found: dict[str, str] = {}
    seen = 0
    for text in texts:
        seen += 1
        prompt = " ".join(unicodedata.normalize("NFC", text or "").split())
        if prompt:
            found.setdefault(prompt.casefold(), prompt)
    if not found:
        raise ValueError(f"{source} holds no prompt: its {seen} rows are missing or blank; name another column or file")
    return list(found.values())


def split_prompts(prompts: Sequence[str], split: PromptSplitSettings) -> PromptSets:
    """Each prompt, cleaned, on the side that the hash of its text and of the split's seed gives it.

    Raises:
        ValueError: one side is empty.
    """
    prompts = clean_prompts(prompts, "prompts.train")
    held_out = in_order_of_hash([prompt for prompt in prompts if _place(prompt, split.seed) < split.share], split.seed)
    train = [prompt for prompt in prompts if _place(prompt, split.seed) >= split.share]
    if not train or not held_out:
        raise ValueError(
            f"prompts.split holds out {len(held_out)} of {len(prompts)} prompts at share={split.share}, and both sides "
            f"need one; {'raise' if train else 'lower'} prompts.split.share, or try another prompts.split.seed"
        )
    return PromptSets(train, held_out)


def in_order_of_hash(prompts: Sequence[str], seed: int = 0) -> list[str]:
    """Prompts in an order of their own texts, so that the first few are a sample of a list that was sorted somehow."""
    return sorted(prompts, key=lambda prompt: _place(prompt, seed))


def save_prompt_sets(sets: PromptSets, settings: PromptSettings, folder: Path) -> None:
    """Write both lists, a prompt a line, and then the statement of where they came from."""
    lists = {TRAIN_FILE: sets.train, HELD_OUT_FILE: sets.held_out}
    for name, prompts in lists.items():
        write_text(folder / name, _as_text(prompts))
    split = settings.split
    write_json(
        folder / STATEMENT,
        {
            "train": _statement(settings.train, TRAIN_FILE, sets.train),
            "held_out": _statement(settings.held_out or settings.train, HELD_OUT_FILE, sets.held_out),
            "split": split.model_dump() if split else None,
        },
    )


def load_prompt_sets(folder: Path) -> PromptSets | None:
    """The prompts that `save_prompt_sets` left in a run folder; None where it did not come to its end.

    Raises:
        ValueError: a list is not what the statement says.
    """
    statement = folder / STATEMENT
    if not statement.is_file():
        return None
    stated = json.loads(statement.read_text(encoding="utf-8"))
    return PromptSets(*(_load_list(folder, stated[name]) for name in ("train", "held_out")))


def _place(prompt: str, seed: int) -> float:
    """A number in [0, 1) that depends on the prompt, not on its case, and on the seed."""
    digest = hashlib.sha256(f"{seed}|{prompt.casefold()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _statement(source: PromptSource, file: str, prompts: list[str]) -> dict[str, Any]:
    where = {"source": source} if isinstance(source, str) else {"source": source.path, "column": source.column}
    return {**where, "prompts": len(prompts), "file": file, "sha256": _hash_of(_as_text(prompts))}


def _load_list(folder: Path, stated: dict[str, Any]) -> list[str]:
    file = folder / stated["file"]
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if _hash_of(text) != stated["sha256"]:
        raise ValueError(
            f"{file} is not the list of prompts that the run began with; restore it, or start a new run with --config"
        )
    return text.splitlines()


def _as_text(prompts: Sequence[str]) -> str:
    return "".join(f"{prompt}\n" for prompt in prompts)


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
