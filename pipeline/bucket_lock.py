"""One process at a time works on a run in an object store, which has no locks: who works there shows it all the while.

The sign is a hidden object beside the run, written anew every few seconds. Whoever finds one waits to see whether that
still happens: no clock is compared with another machine's. A process that was killed leaves a sign that stays as it is.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from pyarrow.fs import FileSystem, FileType

from pipeline.run_lock import PATIENCE_S

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rhythm:
    """How often a sign is given, and what is made of its absence; all in seconds.

    Attributes:
        beat: between two signs.
        silence: after which the process that gave the last one is taken for dead; a store may fail for less than that.
        settling: from a process's first sign to its look at whether another process gave one in the same moment. Both
            are seen by one of them if finding the run free and giving the sign takes no longer.
        patience: how long a process waits for the end of another that lives.
    """

    beat: float = 15.0
    silence: float = 60.0
    settling: float = 2.0
    patience: float = PATIENCE_S


RHYTHM = Rhythm()


def end_this_process() -> None:
    """End at once: whatever is written from now on would be written over what the other process writes."""
    logging.shutdown()
    os._exit(1)


@contextmanager
def held_alone_in_bucket(
    location: str, rhythm: Rhythm = RHYTHM, on_loss: Callable[[], None] = end_this_process
) -> Iterator[None]:
    """Hold the run at a URI, which need not exist yet; after a process that was killed, once `rhythm.silence` is over.

    Args:
        location: the URI of the run.
        rhythm: the same for all who work there.
        on_loss: called, in another thread, where another process has taken the run over.

    Raises:
        ValueError: another process holds it, and still does so after `rhythm.patience`, or took it in the same moment;
            or the store refuses.
    """
    try:
        sign = _Sign(location)
    except OSError as error:
        raise ValueError(f"nobody can tell who works on {location}: {error}") from error
    ended = threading.Event()
    giver = threading.Thread(target=_give_again_and_again, args=(sign, rhythm.beat, ended, on_loss), daemon=True)
    try:
        _take(sign, rhythm)
        giver.start()
        yield
    finally:
        ended.set()
        if giver.is_alive():
            giver.join()
        sign.take_back()


class _Sign:
    """The object that says who works on a run."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._filesystem, path = FileSystem.from_uri(location)
        folder, _, name = path.rpartition("/")
        self.path = f"{folder}/.{name}.lock"
        self._holder = uuid4().hex
        self._beats = 0

    def read(self) -> str | None:
        """What is there, None without one."""
        if self._filesystem.get_file_info(self.path).type == FileType.NotFound:
            return None
        try:
            with self._filesystem.open_input_stream(self.path) as stream:
                text: str = stream.read().decode()
        except FileNotFoundError:  # it was taken back just now
            return None
        return text

    def is_own(self, found: str | None) -> bool:
        """Whether what was read is this process's."""
        return self._holder in (found or "")

    def give(self) -> None:
        """Write it, unlike every one before."""
        self._beats += 1
        values = {"host": socket.gethostname(), "pid": os.getpid(), "holder": self._holder, "beats": self._beats}
        with self._filesystem.open_output_stream(self.path) as stream:
            stream.write(json.dumps(values).encode())

    def take_back(self) -> None:
        """Remove it, if it is this process's; where the store refuses, the next process waits for silence."""
        try:
            if self.is_own(self.read()):
                self._filesystem.delete_file(self.path)
        except OSError as error:
            logger.warning("could not say that the work on %s is over: %s", self.location, error)


def _take(sign: _Sign, rhythm: Rhythm) -> None:
    """Give the first sign, and see that nobody else did so in the same moment."""
    settling = rhythm.settling
    try:
        looked_at = _wait_until_free(sign, rhythm)
        sign.give()
        while (took := time.monotonic() - looked_at) > settling:
            settling = 2 * took
            looked_at = _wait_until_free(sign, rhythm)
            sign.give()
        time.sleep(settling)
        found = sign.read()
    except OSError as error:
        raise ValueError(
            f"whoever works on {sign.location} has to read and write {sign.path}, and cannot: {error}"
        ) from error
    if not sign.is_own(found):
        raise ValueError(_refusal(sign, found))


def _wait_until_free(sign: _Sign, rhythm: Rhythm) -> float:
    """Wait for the end of another process, or for its silence; return when that was looked for, by time.monotonic()."""
    began = changed_at = looked_at = time.monotonic()
    seen = sign.read()
    if seen is None or sign.is_own(seen):
        return looked_at
    logger.warning(
        "%s may be at work on %s; this process waits %.0f s for a sign of it, and at most %.0f s for its end",
        *(_who(seen), sign.location, rhythm.silence, rhythm.patience),
    )
    while looked_at < changed_at + rhythm.silence:
        if changed_at > began + rhythm.patience:
            raise ValueError(_refusal(sign, seen))
        time.sleep(min(rhythm.beat, rhythm.silence) / 4)
        looked_at = time.monotonic()
        try:
            found = sign.read()
        except OSError as error:
            logger.warning("could not see whether %s is being worked on: %s", sign.location, error)
            changed_at = looked_at
            continue
        if found is None:
            return looked_at
        if found != seen:
            seen, changed_at = found, looked_at
    return looked_at


def _give_again_and_again(sign: _Sign, beat_s: float, ended: threading.Event, on_loss: Callable[[], None]) -> None:
    while not ended.wait(beat_s):
        try:
            found = sign.read()
            if found is not None and not sign.is_own(found):
                logger.error(
                    "%s has taken %s over, because this process gave no sign; it ends", _who(found), sign.location
                )
                on_loss()
                return
            sign.give()
        except OSError as error:
            logger.warning("could not say that %s is being worked on: %s", sign.location, error)


def _refusal(sign: _Sign, found: str | None) -> str:
    if found is None:
        return f"somebody removed {sign.path}, by which one process at a time works on {sign.location}; try again"
    return f"{_who(found)} is at work on {sign.location}; wait for its end, or stop it, and try again"


def _who(found: str) -> str:
    """The process that gave a sign, as well as it can be told."""
    try:
        values = json.loads(found)
        return f"process {values['pid']} on {values['host']}"
    except (ValueError, LookupError, TypeError):
        return "another process"
