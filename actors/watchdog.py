"""A process that hangs ends itself, where nobody else can tell it from one that waits.

A fleet cannot tell an actor that hangs while it loads from one that waits for room, nor Ray Train a learner that hangs
from one that learns slowly.
"""

import faulthandler
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Its number, for the object may have been replaced by one without.
STDERR = 2


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, with the stack of every thread in Ray's log of it.

    The watchdog is a thread of its own that needs no lock of Python's: code that hangs may hold it. A process has one,
    so blocks of this kind do not nest.
    """
    faulthandler.dump_traceback_later(min(seconds, threading.TIMEOUT_MAX), file=STDERR, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
