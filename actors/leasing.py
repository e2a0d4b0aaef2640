"""Calling a worker of a fleet: lease, call, give back; on another worker if that one dies.

Imported by the light tasks of Ray Data, so nothing here imports torch.
"""

import asyncio
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.fleet import FleetError, Lease


async def call_leased(fleet: "ActorHandle[Any]", method: str, *args: Any, max_attempts: int = 8) -> Any:
    """Call `method(*args)` on a leased worker of `fleet` and return its result.

    The call is made again elsewhere if the worker dies or its result is lost, so it must not matter that it runs twice.

    Raises:
        FleetError: the fleet cannot serve, or the call was lost `max_attempts` times.
        Exception: what the method itself raised, at once.
    """
    worker_id, loss = "", ""
    for _ in range(max_attempts):
        lease = await _lease(fleet)
        worker_id = lease.worker_id
        try:
            return await _result_renewing(fleet, lease, getattr(lease.worker, method).remote(*args))
        except RayTaskError as error:  # first: Ray gives it the class of its cause too, even that of a dead actor
            cause = _cause_of(error)
            cause.add_note(f"in {method} on {worker_id}")
            raise cause from error
        except RayActorError as error:
            loss = str(error)
            # Awaited: an asynchronous actor may serve calls out of order, and lease the dead worker again first.
            await fleet.report_dead.remote(lease.worker_id, loss)
        except ObjectLostError as error:  # the result lay on a node that was lost
            loss = str(error)
        finally:
            fleet.release.remote(lease.lease_id)
    raise FleetError(
        f"a call of {method} was lost {max_attempts} times, last on {worker_id}; if each worker dies of this call "
        f"(out of memory?), make its batch smaller. The last loss:\n{loss}"
    )


def call_leased_sync(fleet: "ActorHandle[Any]", method: str, *args: Any, max_attempts: int = 8) -> Any:
    """`call_leased` for callers without an event loop, such as the tasks of Ray Data."""
    return asyncio.run(call_leased(fleet, method, *args, max_attempts=max_attempts))


async def _lease(fleet: "ActorHandle[Any]") -> Lease:
    try:
        return await fleet.lease.remote()
    except RayTaskError as error:
        raise _cause_of(error) from error


async def _result_renewing(fleet: "ActorHandle[Any]", lease: Lease, reference: "ObjectRef[Any]") -> Any:
    """Await the result, and tell the fleet meanwhile that its caller lives."""
    result = asyncio.wrap_future(reference.future())
    while True:
        done, _ = await asyncio.wait({result}, timeout=lease.renew_within_s / 3)
        if done:
            return result.result()
        fleet.renew.remote(lease.lease_id)


def _cause_of(error: RayTaskError) -> BaseException:
    """The exception that user code raised, under every layer of Ray's; `error` itself where Ray could not carry it."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    return cause
