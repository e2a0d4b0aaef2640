"""What keeps a job's terminal readable: no harmless lines of libraries, and one message for a fault of the user's."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.patience import StorageError
from pipeline.secrets import redact

SETTINGS = {
    # transformers names, at import, every image processor that would rather have torchvision; nothing here uses one.
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # A thread that is given up when a job is stopped must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}

SETTINGS_OF_A_RAY_OF_OUR_OWN = {
    # Ray's default, of which it warns unless it is chosen by name: only this user's processes may talk to this Ray.
    "RAY_AUTH_MODE": "token",
    # Ray warns when it has started four times as many processes as this; a small run is about twenty.
    "RAY_worker_maximum_startup_concurrency": "8",
    # Nobody takes this machine away in the middle of a run, as clouds do with spot nodes: a process less.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def be_quiet() -> None:
    """Apply the settings, but what is set outside already; call it before anything imports Ray or transformers."""
    settings = dict(SETTINGS)
    if not os.environ.get("RAY_ADDRESS"):
        settings |= SETTINGS_OF_A_RAY_OF_OUR_OWN
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # At its first use on a machine matplotlib warns that it is looking for fonts.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


@contextmanager
def resumable_by(command: str, begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """End a job that SIGTERM or Ctrl-C stops with the command that takes it up again, and the exit code of shells.

    Args:
        command: that command.
        begun: whether there is anything to take up yet.
    """
    try:
        yield
    except KeyboardInterrupt:
        number = signal.SIGINT
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # with which Ray's own handler of that signal exits
            raise
        number = signal.SIGTERM
    else:
        return
    how = f"what was finished is kept; continue with: {command}" if begun() else "nothing was begun yet"
    print(f"stopped; {how}", file=sys.stderr, flush=True)
    sys.exit(128 + number)


@contextmanager
def one_readable_message() -> Iterator[None]:
    """End the process with the message of a fault of the user's, or of the storage's, without a stack or secrets."""
    terminal = logging.StreamHandler()
    # What a run says of itself goes to its folder from a lower level on.
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(_RedactingFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[terminal])
    hook, threading.excepthook = threading.excepthook, _tell_of_a_thread
    try:
        yield
    except (ValueError, StorageError, OSError) as error:
        sys.exit(f"error: {redact(str(error))}")
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception:  # noqa: BLE001  a defect: told in full, as Python would, but for its secrets
        sys.exit(redact(traceback.format_exc()))
    finally:
        threading.excepthook = hook


def _tell_of_a_thread(end: threading.ExceptHookArgs) -> None:
    """As Python would, but for secrets."""
    if end.exc_type is SystemExit:
        return
    told = traceback.format_exception(end.exc_type, end.exc_value, end.exc_traceback)
    print(redact(f"in a thread: {''.join(told)}"), file=sys.stderr, flush=True)


class _RedactingFormatter(logging.Formatter):
    """Lines and stacks without secrets: the terminal of a submitted job is a file, which Ray's dashboard shows."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
