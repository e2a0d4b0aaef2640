"""SIGTERM and Ctrl-C: the work in progress may come to a good end; a second signal waits for nothing."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_SECONDS = 0.1

# Between two times that the same request is made: an actor that Ray has started anew knows of none.
REPEAT_SECONDS = 1.0

Result = TypeVar("Result")


class RunStoppedError(Exception):
    """A run ended early because a signal asked it to; it can be taken up again.

    Attributes:
        exit_code: what shells give a process that the signal ended.
    """

    def __init__(self, signal_number: int, how: str) -> None:
        super().__init__(f"stopped by {name_of(signal_number)}, {how}")
        self.exit_code = 128 + signal_number


class StopRequest:
    """Whether a run was asked to stop, and who is told of it; of use to several threads."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._listeners: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def make(self, signal_number: int) -> None:
        """Ask, and tell everybody who listens; the same request may be made again."""
        with self._lock:
            self.signal_number = signal_number
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], object]) -> None:
        """Call `listener` each time the request is made, at once if it was made already."""
        with self._lock:
            self._listeners.append(listener)
            made = self.signal_number is not None
        if made:
            listener()

    def raise_if_made(self) -> None:
        """End a run whose last iteration has a checkpoint.

        Raises:
            RunStoppedError: it was asked to stop.
        """
        if self.signal_number is not None:
            raise RunStoppedError(self.signal_number, "with a checkpoint of all that was done")


def work_until_stopped(
    work: Callable[[StopRequest], Result], grace_seconds: float, say: Callable[[str], object]
) -> Result:
    """Return what `work` returns; call it from the main thread, to which Python brings signals.

    The work goes on in a thread of its own. After a signal it has `grace_seconds` to come to a good end, and is asked
    for it again and again.

    Raises:
        RunStoppedError: a signal came, and the work ended for it, or its time was over, or another signal came.
        Exception: what the work itself raised.
    """
    stop, received = StopRequest(), list[int]()
    future: Future[Result] = Future()
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in SIGNALS}
    threading.Thread(target=_fulfil, args=(future, work, stop), daemon=True).start()
    try:
        deadline = next_request = float("inf")
        while not wait([future], timeout=POLL_SECONDS).done:
            if received and stop.signal_number is None:
                next_request = time.monotonic()
                deadline = next_request + grace_seconds
                say(
                    f"{name_of(received[0])}: the work in progress has {grace_seconds:g} s to end, an iteration with a "
                    "checkpoint; a second signal stops at once"
                )
            if time.monotonic() >= next_request:
                stop.make(received[0])
                next_request = time.monotonic() + REPEAT_SECONDS
            if len(received) > 1 or time.monotonic() > deadline:
                # What its threads meet from here on, while everything is taken from under them, is no news.
                threading.excepthook = lambda _: None
                raise RunStoppedError(received[0], "the work in progress was given up")
        return future.result()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def name_of(signal_number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(signal_number).name


def _fulfil(future: "Future[Result]", work: Callable[[StopRequest], Result], stop: StopRequest) -> None:
    try:
        future.set_result(work(stop))
    except BaseException as error:  # noqa: BLE001 (raised again by `future.result()`)
        future.set_exception(error)
