"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from typing import Any

# Far above what anything here takes, on cores that other tests share.
PATIENCE_S = 600.0


def wait_until(condition: Callable[[], Any]) -> None:
    """Return as soon as the condition holds.

    Raises:
        AssertionError: it does not within ten minutes.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
