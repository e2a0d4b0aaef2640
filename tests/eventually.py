"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from typing import Any

# Far above what anything here takes, on cores that other tests share.
PATIENCE_S = 600.0


def wait_until(condition: Callable[[], Any], interval_s: float = 0.05) -> None:
    """Return once the condition holds; it is looked at every `interval_s`, less than it holds.

    Raises:
        AssertionError: it does not within ten minutes.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(interval_s)
