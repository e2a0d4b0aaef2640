"""Where the lines of an actor go: to Ray's log of its process, and to the run folder where it can reach the journal.

Ray keeps the log of every process on its node, under the session's folder, and shows it on its dashboard.

Imported by the light tasks of Ray Data through the fleet, so nothing here imports torch.
"""

import sys
from collections.abc import Callable
from typing import Any

import ray

from pipeline.logs import log_lines


def log_in_actor(role: str, worker: str = "", send: Callable[[str], Any] | None = None) -> None:
    """Log every line of this actor's process; elsewhere, in a test that calls its class itself, nothing is done.

    Args:
        role: what the actor is, such as rollout.
        worker: which of them; by default Ray's id of the actor, by which its dashboard finds it.
        send: takes the lines too, such as `log.remote` of the journal, which keeps them in the run folder.
    """
    # Asked for the context of a process, Ray would start.
    actor_id = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    if actor_id is None:
        return
    for receiver in filter(None, (_to_stderr, send)):
        log_lines(receiver, role, worker or actor_id)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
