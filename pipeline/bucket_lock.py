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
from collections.abc import Iterator
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
        settling: between taking a run and looking whether another process took it in the same moment.
        patience: how long a process waits for the end of another.
    """

    beat: float = 15.0
    silence: float = 60.0
    settling: float = 1.0
    patience: float = PATIENCE_S


RHYTHM = Rhythm()


@contextmanager
def held_alone_in_bucket(location: str, rhythm: Rhythm = RHYTHM) -> Iterator[None]:
    """Hold the run at a URI, which need not exist yet; after a process that was killed, once `rhythm.silence` is over.

    Raises:
        ValueError: another process holds it, and still does so after `rhythm.patience`, or took it in the same moment;
            or the store refuses.
    """
    sign = _Sign(location)
    try:
        _wait_until_free(sign, rhythm)
        sign.give()
        time.sleep(rhythm.settling)
        found = sign.read()
    except OSError as error:
        raise ValueError(f"nobody can tell who works on {location}: {error}; try again") from error
    if not sign.is_own(found):
        raise ValueError(_refusal(location, found))
    ended = threading.Event()
    giver = threading.Thread(target=_give_again_and_again, args=(sign, rhythm.beat, ended), daemon=True)
    giver.start()
    try:
        yield
    finally:
        ended.set()
        giver.join()
        sign.take_back()


class _Sign:
    """The object that says who works on a run."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._filesystem, path = FileSystem.from_uri(location)
        folder, _, name = path.rpartition("/")
        self._path = f"{folder}/.{name}.lock"
        self._holder = uuid4().hex
        self._beats = 0

    def read(self) -> str | None:
        """What is there, None without one."""
        if self._filesystem.get_file_info(self._path).type == FileType.NotFound:
            return None
        try:
            with self._filesystem.open_input_stream(self._path) as stream:
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
        with self._filesystem.open_output_stream(self._path) as stream:
            stream.write(json.dumps(values).encode())

    def take_back(self) -> None:
        """Remove it, if it is this process's; where the store refuses, the next process waits for silence."""
        try:
            if self.is_own(self.read()):
                self._filesystem.delete_file(self._path)
        except OSError as error:
            logger.warning("could not say that the work on %s is over: %s", self.location, error)


def _wait_until_free(sign: _Sign, rhythm: Rhythm) -> None:
    seen = sign.read()
    if seen is None:
        return
    began = changed_at = time.monotonic()
    logger.warning(
        "%s may be at work on %s; this process waits %.0f s for a sign of it", _who(seen), sign.location, rhythm.silence
    )
    while time.monotonic() < changed_at + rhythm.silence:
        time.sleep(min(rhythm.beat, rhythm.silence) / 4)
        found = sign.read()
        if found is None:
            return
        if found != seen:
            seen, changed_at = found, time.monotonic()
        if changed_at > began + rhythm.patience:
            raise ValueError(_refusal(sign.location, seen))


def _give_again_and_again(sign: _Sign, beat_s: float, ended: threading.Event) -> None:
    while not ended.wait(beat_s):
        try:
            found = sign.read()
            if found is None or sign.is_own(found):
                sign.give()
            else:
                logger.error("this process was taken for dead: %s", _refusal(sign.location, found))
        except OSError as error:
            logger.warning("could not say that %s is being worked on: %s", sign.location, error)


def _refusal(location: str, sign: str | None) -> str:
    return f"{_who(sign)} is at work on {location}; wait for its end, or stop it, and try again"


def _who(sign: str | None) -> str:
    """The process that gave a sign, as well as it can be told."""
    try:
        values = json.loads(sign or "")
        return f"process {values['pid']} on {values['host']}"
    except (ValueError, LookupError, TypeError):
        return "another process"
