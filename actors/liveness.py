"""Which actors have died, by the word of the cluster's control store."""

import logging
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RpcError

logger = logging.getLogger(__name__)

ANSWER_S = 5.0

DEATHS = (RayActorError, OutOfMemoryError)
"""What a call raises whose actor died; the second where Ray's memory monitor killed it, for its node ran short."""


def own_actor_id() -> str:
    """The id of the actor that this code runs in; empty in a task or a driver."""
    return ray.get_runtime_context().get_actor_id() or ""


async def dead_actors(actor_ids: Iterable[str]) -> set[str]:
    """Those of the actors that have died for good; none where the cluster's control store does not answer."""
    worker: Any = ray._private.worker.global_worker
    dead = set()
    try:
        for actor_id in actor_ids:
            found = await worker.gcs_client.async_get_all_actor_info(
                actor_id=ray.ActorID.from_hex(actor_id), timeout=ANSWER_S
            )
            dead |= {actor_id for actor in found.values() if actor.state == actor.DEAD}
    except RpcError as error:
        logger.warning("cannot ask which actors live: %s", error)
    return dead
