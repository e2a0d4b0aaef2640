"""Workers of fleets and an actor that calls them. Their processes import this module, which needs no pytest."""

import asyncio
import os
import time
from pathlib import Path

from eventually import wait_until
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError

from actors.leasing import call_leased
from actors.liveness import own_actor_id


class Worker:
    """An asynchronous worker that notes how many calls it serves at once, and in which order they came."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.order: list[int] = []

    async def ready(self) -> bool:
        return True

    async def work(self, number: int, seconds: float) -> int:
        self.now += 1
        self.peak = max(self.peak, self.now)
        self.order.append(number)
        await asyncio.sleep(seconds)
        self.now -= 1
        return os.getpid()

    async def linger_in(self, pid: int) -> int:
        """Come to no end in this one process."""
        while os.getpid() == pid:
            await asyncio.sleep(0.05)
        return os.getpid()

    async def history(self) -> tuple[int, list[int]]:
        return self.peak, self.order

    async def refuse(self, value: str) -> None:
        raise LookupError(f"no such prompt: {value}")

    async def call_a_dead_actor(self) -> None:
        raise ActorDiedError()

    async def die(self) -> None:
        os._exit(1)


class LateWorker:
    """The first to come is ready at once, the others when `directory` holds a file named go."""

    def __init__(self, directory: Path) -> None:
        try:
            (directory / "first").touch(exist_ok=False)
        except FileExistsError:
            wait_until((directory / "go").exists)

    def ready(self) -> bool:
        return True

    def pid(self) -> int:
        return os.getpid()


class Caller:
    """An asynchronous actor that calls workers of a fleet."""

    async def call(self, fleet: ActorHandle, number: int, seconds: float) -> None:
        await call_leased(fleet, "work", number, seconds)

    async def give_up_waiting(self, fleet: ActorHandle) -> None:
        call = asyncio.create_task(call_leased(fleet, "work", 0, 0.0))
        await asyncio.sleep(0.5)
        call.cancel()

    async def own_id(self) -> str:
        return own_actor_id()

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)

    async def call_and_block(self, fleet: ActorHandle, go: Path) -> None:
        await call_leased(fleet, "work", 0, 0.0)
        wait_until(go.exists)
