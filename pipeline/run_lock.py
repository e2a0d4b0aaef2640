"""One process at a time works on a run folder: two would write every iteration twice."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

# A job that is stopped has this long to end its iteration, and an NFS server keeps the locks of a machine that died for
# a minute or two.
PATIENCE_S = 150.0


@contextmanager
def held_alone(folder: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold a run folder, which need not exist yet; a process that is killed lets go of it at once.

    The lock is a hidden file beside the folder. It holds for all machines that see it where the file system's locks do,
    as those of NFS 4; a file system without locks is warned of.

    Raises:
        ValueError: another process holds it, and still does so after `patience_s` seconds.
    """
    folder = folder.resolve()
    file = folder.parent / f".{folder.name}.lock"
    # A marker, which filelock would fall back to, outlives a process that is killed.
    lock = FileLock(file, fallback_to_soft=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, patience_s)
    except OSError as error:
        logger.warning("%s cannot be locked (%s); see to it that nobody else works on %s", file, error, folder)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, patience_s: float) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.warning("another process is at work on %s; this one waits %.0f s for its end", folder, patience_s)
    else:
        return
    try:
        lock.acquire(timeout=patience_s, poll_interval=0.2)
    except Timeout:
        raise ValueError(
            f"another process is at work on {folder} and holds {lock.lock_file}; wait for its end, or stop it, and try "
            "again"
        ) from None
