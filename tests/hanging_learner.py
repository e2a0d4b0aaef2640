"""A learner worker that hangs once; workers import it by its name."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import ray.train

from actors.training import _train_worker
from pipeline.learning import Learner
from pipeline.records import RecordRows


def hang_once(hung: Path, rank: int, step: int, loop_config: dict[str, Any]) -> None:
    """Ray Train's function, whose worker `rank` hangs in its optimiser step `step`, unless the file is there."""
    accumulate, steps = Learner._accumulate, iter(range(1_000_000))

    def accumulate_or_hang(learner: Learner, rows: RecordRows) -> Any:
        if next(steps) == step and ray.train.get_context().get_world_rank() == rank and not hung.exists():
            hung.touch()
            time.sleep(3600)
        return accumulate(learner, rows)

    Learner._accumulate = accumulate_or_hang
    _train_worker(loop_config)


def that_hangs_once(hung: Path, rank: int, step: int) -> Any:
    """What to give Ray Train as the function of its workers."""
    return partial(hang_once, hung, rank, step)
