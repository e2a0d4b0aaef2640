"""Storage that fails for a while is asked again, with pauses that double, and given up with what to do."""

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

# No space, no quota, and a file beyond the size that the process or its file system allows.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Result = TypeVar("Result")


class StorageError(RuntimeError):
    """Storage failed for longer than the run was told to wait."""


@dataclass(frozen=True)
class Patience:
    """How long storage that fails is asked again.

    Attributes:
        seconds: from the first failure to the last attempt; 0 asks once.
    """

    seconds: float

    def keep_trying(self, what: str, action: Callable[[], Result]) -> Result:
        """Return what `action` returns; it is called again after an OSError, and must bear that.

        Args:
            what: names the action in messages, such as "write metrics.jsonl".

        Raises:
            StorageError: it failed to the end, with what to do.
        """
        deadline, pause = float("inf"), FIRST_PAUSE_S
        while True:
            try:
                return action()
            except OSError as error:
                now = time.monotonic()
                deadline = min(deadline, now + self.seconds)
                if now >= deadline:
                    raise StorageError(
                        f"could not {what}, tried again for {self.seconds:g} s: {error}; {_advice(error)}"
                    ) from None
                pause_s = min(pause, deadline - now)
                logger.warning("could not %s: %s; trying again in %.1f s", what, error, pause_s)
            time.sleep(pause_s)
            pause = min(2 * pause, LONGEST_PAUSE_S)


NO_PATIENCE = Patience(0)
"""Asks once."""


def in_megabytes(num_bytes: int) -> str:
    """1.5 MB, and never less than 0.1 MB."""
    return f"{max(num_bytes / 1e6, 0.1):.1f} MB"


def _advice(error: OSError) -> str:
    if error.errno in FULL:
        return (
            "the disk is full: free some space on it, for example by deleting folders of finished runs, or files under "
            "records/ that are no longer needed"
        )
    return "bring the storage back, or see to it that it can be written to"
