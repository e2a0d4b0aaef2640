"""A checkpoint directory: tensors as safetensors, everything else as JSON; no pickles."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.learning import Learner
from pipeline.policy import Policy

TENSORS_FILE = "learner.safetensors"
POSITION_FILE = "position.json"
METHOD_FILE = "method.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        next_iteration: the next one to roll out.
        policy_version: how many times weights were published.
        seconds: what the iterations before took, rollouts and learning alone.
    """

    next_iteration: int
    policy_version: int
    seconds: float = 0.0


def save_checkpoint(learner: Learner, position: Position, directory: Path) -> None:
    """Write everything a resumed run needs into an existing directory.

    That is the adapter, the optimiser, the rewards' statistics, torch's random state, the method's state, the position.
    """
    tensors = learner.optimiser.state() | learner.normaliser.state() | {"torch_rng": torch.get_rng_state()}
    save_file(tensors, directory / TENSORS_FILE)
    (directory / POSITION_FILE).write_text(json.dumps(asdict(position)), encoding="utf-8")
    (directory / METHOD_FILE).write_text(json.dumps(learner.method.state()), encoding="utf-8")


def load_checkpoint(learner: Learner, directory: Path) -> Position:
    """Take `learner` back to where the checkpoint was written, to the last bit.

    Raises:
        ValueError: the checkpoint is of another adapter.
    """
    tensors = load_file(directory / TENSORS_FILE)
    found = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("adapter.")}
    wanted = {f"adapter.{name}": tuple(value.shape) for name, value in learner.optimiser.parameters.items()}
    if found != wanted:
        raise ValueError(
            f"the checkpoint {directory} holds another adapter; resume with the configuration that wrote it"
        )
    torch.set_rng_state(tensors.pop("torch_rng"))
    learner.normaliser.load_state(tensors)
    learner.optimiser.load_state(tensors)
    learner.method.load_state(json.loads((directory / METHOD_FILE).read_text(encoding="utf-8")))
    return Position(**json.loads((directory / POSITION_FILE).read_text(encoding="utf-8")))


def load_average(policy: Policy, directory: Path) -> None:
    """Set `policy`'s adapter to the moving average that a checkpoint of a run with `learner.ema_decay` holds."""
    tensors = load_file(directory / TENSORS_FILE)
    with torch.no_grad():
        for name, value in policy.adapter_parameters().items():
            value.copy_(tensors[f"average.{name}"])
