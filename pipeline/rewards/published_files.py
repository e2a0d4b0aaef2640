"""Checkpoints whose files are published apart: each looked for in one directory, else where it is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from pipeline.rewards.checkpoint_files import directory_of, local_file, require_file


def require_weights(reward: str, source: str, name: str, hub_id: str) -> None:
    """Refuse a directory or hub id ``source`` without the file ``name``; any file is taken. Nothing is downloaded.

    Raises:
        ValueError: the file is missing; the message names the command that fetches it from ``hub_id``.
    """
    if not Path(source).is_file():
        require_file(reward, source, (name,), hub_id)


def weights_of(source: str, name: str) -> Path:
    """Where the weights lie: ``source`` itself where that is a file, else ``name`` of the directory or hub id.

    Raises:
        OSError: as `local_file`.
    """
    return Path(source) if Path(source).is_file() else local_file(source, name)


def place_of(reward: str, source: str, names: tuple[str, ...], hub_id: str) -> str:
    """Where one of the files ``names`` is found: the directory of ``source`` if it has one of them, else ``hub_id``.

    Raises:
        ValueError: neither has any; the message names the command that fetches one.
    """
    directory = directory_of(source)
    if any((Path(directory) / name).is_file() for name in names):
        return directory
    require_file(reward, hub_id, names)
    return hub_id


def load_exactly(network: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Make ``tensors`` the parameters of ``network``, every one of them and no other; ``file`` is for the message.

    The numbers 0, 1, 2, ... of positions, which old versions of transformers saved and today's make anew, are left out.

    Raises:
        ValueError: a name or a shape is not what the network has.
    """
    parameters = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    try:
        network.load_state_dict(parameters, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{str(file)!r} is not the checkpoint this reward needs: {error}") from error
