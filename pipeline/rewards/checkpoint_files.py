"""Files of a checkpoint, wherever it lies: in a directory, in the hub's cache, or on the hub."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.hub import cached_file, has_file

MODEL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What `from_pretrained` loads, best first."""


def find_file(source: str, names: tuple[str, ...]) -> str | None:
    """The first of `names` that `source`, a directory or hub id, has; None where it has none of them.

    Nothing is downloaded. A hub that cannot be reached costs one attempt per name, seconds at most, and counts as what
    its cache holds.
    """
    try:
        return next((name for name in names if has_file(source, name)), None)
    except (OSError, ValueError):  # no such repository, or a name that no repository can have
        return None


def require_file(reward: str, source: str, names: tuple[str, ...], hub_id: str | None = None) -> str:
    """`find_file`, for a file that `reward` cannot do without.

    Args:
        hub_id: where the first of `names` is published, for a directory that lacks it; None where nobody can know.

    Raises:
        ValueError: none of `names` is there; the message says how to get one.
    """
    found = find_file(source, names)
    if found is not None:
        return found
    missing = " or ".join(names)
    if Path(source).is_dir():
        advice = "; docs/rewards.md says which checkpoint does"
        if hub_id is not None:
            advice = f": fetch it by `hf download {hub_id} {names[0]} --local-dir {source}`"
        raise ValueError(f"reward {reward!r} needs {missing}, which the directory {source!r} does not hold{advice}")
    raise ValueError(
        f"reward {reward!r} needs {missing} of {source!r}, which is no directory, not in the cache of the hub, and "
        f"cannot be had from the hub now: run `hf download {source} {names[0]}` where the hub can be reached, copy "
        "what it fetched, and name it by reward.path (docs/rewards.md lists what each reward takes)"
    )


def refuse_missing_path(path: str) -> None:
    """Refuse what is meant as a path of this machine and does not exist; anything else may be a hub id.

    Raises:
        ValueError: the parent of `path` is a directory, and `path` is not in it.
    """
    place = Path(path)
    if not place.exists() and place.parent != Path() and place.parent.is_dir():
        raise ValueError(f"reward.path {path!r} does not exist: give a checkpoint on this machine or a hub id")


def directory_of(path: str) -> str:
    """The directory that a file of this machine lies in; a directory or hub id as it is."""
    return str(Path(path).parent) if Path(path).is_file() else path


def directory_of_weights(path: str) -> str:
    """`directory_of`, for a file that `from_pretrained` is to load, which takes directories alone.

    Raises:
        ValueError: it would load another file of that directory, or none; what to do about it.
    """
    place = Path(path)
    if place.is_file():
        loaded = next((name for name in MODEL_WEIGHTS if (place.parent / name).is_file()), None)
        if loaded != place.name:
            fault = f"in its directory transformers loads {loaded} instead: move one of them to another directory"
            if loaded is None:
                fault = f"transformers loads no file of that name: call it one of {', '.join(MODEL_WEIGHTS)}"
            raise ValueError(f"reward.path {path!r} is a file, and {fault}")
    return directory_of(path)


def local_file(source: str, name: str) -> Path:
    """Where `name` of the directory or hub id `source` lies on this machine, downloaded if need be.

    Raises:
        OSError: the hub cannot be reached, or has no such file; `require_file` says so in time.
    """
    return Path(cached_file(source, name))


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, or of one written by `torch.save`, on the CPU.

    A training checkpoint, which keeps its tensors under "state_dict", gives those alone. No code in the file is run.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as weights: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{str(file)!r} holds no tensors by name, but a {type(content).__name__}")
    return state
