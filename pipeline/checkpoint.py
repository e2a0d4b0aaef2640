"""What a checkpoint holds: tensors as safetensors, everything else as JSON; no pickles.

It is packed into the bytes of its files, so that what `pipeline/checkpoint_store.py` writes to a disk or to object
storage, sums up and checks is what was in memory.
"""

import json
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load, save

from pipeline.adapter import Adapted
from pipeline.checkpoint_store import Files
from pipeline.learning import Learner

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


def pack_checkpoint(learner: Learner, position: Position) -> Files:
    """Everything that a resumed run needs, as files.

    That is the adapter, the optimiser, the rewards' statistics, torch's random state, the method's state, the position.
    """
    tensors = learner.optimiser.state() | learner.normaliser.state() | {"torch_rng": torch.get_rng_state()}
    return {
        TENSORS_FILE: save(tensors),
        POSITION_FILE: json.dumps(asdict(position)).encode(),
        METHOD_FILE: json.dumps(learner.method.state()).encode(),
    }


def unpack_checkpoint(learner: Learner, files: Files) -> Position:
    """Take `learner` back to where the checkpoint was packed, to the last bit.

    Raises:
        ValueError: the checkpoint is of another adapter.
    """
    tensors = load(files[TENSORS_FILE])
    found = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("adapter.")}
    wanted = {f"adapter.{name}": tuple(value.shape) for name, value in learner.optimiser.parameters.items()}
    if found != wanted:
        raise ValueError("the checkpoint holds another adapter; resume with the configuration that wrote it")
    torch.set_rng_state(tensors.pop("torch_rng"))
    learner.normaliser.load_state(tensors)
    learner.optimiser.load_state(tensors)
    learner.method.load_state(json.loads(files[METHOD_FILE]))
    return Position(**json.loads(files[POSITION_FILE]))


def load_average(policy: Adapted, files: Files) -> None:
    """Set the adapter of `policy` to the moving average that a checkpoint of a run with `learner.ema_decay` holds."""
    tensors = load(files[TENSORS_FILE])
    with torch.no_grad():
        for name, value in policy.adapter_parameters().items():
            value.copy_(tensors[f"average.{name}"])
