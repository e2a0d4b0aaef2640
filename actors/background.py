"""What an asyncio actor does beside its calls, without losing an error."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class BackgroundTasks:
    """Coroutines that run beside calls; one that raises is reported, not forgotten with its task."""

    def __init__(self, on_error: Callable[[BaseException], Coroutine[Any, Any, None]]) -> None:
        """`on_error` is run in the background too."""
        self._on_error = on_error
        # The event loop holds its tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Begin it, on the running event loop."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.run(self._on_error(error))
