"""Nodes that are about to be taken back: spot notices and scale-downs, as far as Ray knows of them."""

import logging
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RpcError

logger = logging.getLogger(__name__)


def draining_nodes() -> set[str]:
    """The ids of nodes that take no new work and will go; none where the cluster's control store does not answer."""
    worker: Any = ray._private.worker.global_worker
    try:
        return set(worker.gcs_client.get_draining_nodes())
    except RpcError as error:
        logger.warning("cannot ask which nodes will be taken back: %s", error)
        return set()


async def node_of(actor: "ActorHandle[Any]") -> str:
    """The id of the node that an actor runs on; waits until it runs."""
    call: Any = actor.__ray_call__
    node_id: str = await call.remote(lambda _: ray.get_runtime_context().get_node_id())
    return node_id
