"""Calling a worker of a fleet: lease, call, give back; on another worker if that one dies, hangs or talks nonsense.

Imported by the light tasks of Ray Data, so nothing here imports torch.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any
from uuid import uuid4

from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayTaskError, TaskCancelledError

from actors.fleet_state import FleetError, Lease
from actors.liveness import DEATHS, own_actor_id

# A batch that is too large for the time-out is so on every worker.
MAX_TIMEOUTS = 3

# torch.AcceleratorError, by its name because nothing here imports torch: the GPU itself has failed, and with it every
# later call of that process. Where its memory ran out is another error, that of the settings.
BROKEN_GPU = "AcceleratorError"

_background: set["asyncio.Task[None]"] = set()


class CallTimeoutError(RuntimeError):
    """A worker did not answer in time."""


async def call_leased(
    fleet: Any,
    method: str,
    *args: Any,
    max_attempts: int = 8,
    nonsense: type[Exception] | None = None,
) -> Any:
    """Call `method(*args)` on a leased worker of `fleet` and return its result.

    The call is made again elsewhere if the worker or its GPU dies, if it hangs or its result is lost, so it must not
    matter that it runs twice.

    Args:
        nonsense: what the method raises where its result is not usable; the call is then made once more.

    Raises:
        FleetError: the fleet cannot serve, or the call was lost `max_attempts` times, or timed out three times.
        Exception: what the method itself raised, at once, or at the second time if it is `nonsense`.
    """
    worker_id, loss = "", ""
    timeouts = 0
    garbled = False
    for _ in range(max_attempts):
        lease = await _lease(fleet)
        worker_id = lease.worker_id
        try:
            return await _result_renewing(fleet, lease, method, args)
        except RayTaskError as error:  # first: Ray gives it the class of its cause too, even that of a dead actor
            cause = _cause_of(error)
            if type(cause).__name__ == BROKEN_GPU:
                loss = str(cause)
                await fleet.report_dead.remote(lease.worker_id, loss)
                continue
            if nonsense is None or not isinstance(cause, nonsense) or garbled:
                cause.add_note(f"in {method} on {worker_id}")
                raise cause from error
            garbled, loss = True, str(cause)
            await fleet.report_garbled.remote(lease.worker_id, loss)
        except CallTimeoutError as error:
            timeouts += 1
            loss = str(error)
            await fleet.report_hung.remote(lease.worker_id, loss)
            if timeouts >= MAX_TIMEOUTS:
                raise FleetError(
                    f"{loss}, as two workers before it; raise timeout_seconds of its pool, make batches smaller, or "
                    "give the pool that it waits for more workers"
                ) from None
        except DEATHS as error:
            loss = str(error)
            # Awaited: an asynchronous actor may serve calls out of order, and lease the dead worker again first.
            await fleet.report_dead.remote(lease.worker_id, loss)
        except ObjectLostError as error:  # the result lay on a node that was lost
            loss = str(error)
        finally:
            _release(fleet, lease.lease_id)
    raise FleetError(
        f"a call of {method} was lost {max_attempts} times, last on {worker_id}; if each worker dies of this call "
        f"(out of memory?), make its batch smaller. The last loss:\n{loss}"
    )


def call_leased_sync(fleet: "ActorHandle[Any]", method: str, *args: Any, max_attempts: int = 8) -> Any:
    """`call_leased` for callers without an event loop, such as the tasks of Ray Data."""
    return asyncio.run(call_leased(fleet, method, *args, max_attempts=max_attempts))


async def _lease(fleet: Any) -> Lease:
    lease_id = uuid4().hex
    reference: ObjectRef[Lease] = fleet.lease.remote(own_actor_id(), lease_id)
    granted = asyncio.wrap_future(reference.future())
    try:
        return await asyncio.shield(granted)
    except RayTaskError as error:
        raise _cause_of(error) from error
    except asyncio.CancelledError:
        # Ray cancels the call too, but the fleet may have granted the lease before it hears of that.
        granted.add_done_callback(lambda call: _give_back_ungranted(fleet, lease_id, call))
        raise


def _give_back_ungranted(fleet: Any, lease_id: str, call: "asyncio.Future[Lease]") -> None:
    if not call.cancelled():
        call.exception()  # looked at, or asyncio would tell of it
    _release(fleet, lease_id)


def _release(fleet: Any, lease_id: str) -> None:
    """Give a lease back at once: whoever had it may compute for long before the loop comes to anything else."""
    _in_background(_make_sure_of(fleet, lease_id, fleet.release.remote(lease_id)))


async def _make_sure_of(fleet: Any, lease_id: str, release: "ObjectRef[None]") -> None:
    """When Ray cancels a task, it cancels the calls on their way from it too."""
    try:
        await release
    except (asyncio.CancelledError, TaskCancelledError):
        fleet.release.remote(lease_id)


def _in_background(coroutine: Coroutine[Any, Any, None]) -> None:
    # The loop holds tasks weakly.
    task = asyncio.get_running_loop().create_task(coroutine)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def _result_renewing(fleet: "ActorHandle[Any]", lease: Lease, method: str, args: tuple[Any, ...]) -> Any:
    """Call, await the result, and tell the fleet meanwhile that its caller lives.

    Raises:
        CallTimeoutError: there is none in time.
    """
    reference: ObjectRef[Any] = getattr(lease.worker, method).remote(*args)
    result = asyncio.wrap_future(reference.future())
    deadline = time.monotonic() + lease.call_timeout_s
    while True:
        left_s = deadline - time.monotonic()
        done, _ = await asyncio.wait({result}, timeout=max(0.0, min(lease.renew_within_s / 3, left_s)))
        if done:
            return result.result()
        if left_s <= 0:
            # Nobody asks for it any more, and an error in it is no news.
            result.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise CallTimeoutError(f"{lease.worker_id} did not answer {method} within {lease.call_timeout_s:g} s")
        fleet.renew.remote(lease.lease_id)


def _cause_of(error: RayTaskError) -> BaseException:
    """The exception that user code raised, under every layer of Ray's; `error` itself where Ray could not carry it."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    return cause
