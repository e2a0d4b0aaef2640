"""What a run says of itself while it goes on: lines of JSON, each with the role and the worker that wrote it.

A line has `time` (UTC), `level`, `role`, `worker` and `message`; `iteration` where it belongs to one, and `exception`,
the stack, where one is told. No secret is in it.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from pipeline.secrets import redact

OUR_LOGGERS = ("pipeline", "actors")
"""Loggers whose lines are kept; libraries speak on their own ones."""

_iteration: ContextVar[int | None] = ContextVar("iteration", default=None)


@contextmanager
def at_iteration(iteration: int) -> Iterator[None]:
    """Lines of this task or thread belong to `iteration`."""
    token = _iteration.set(iteration)
    try:
        yield
    finally:
        _iteration.reset(token)


class LineHandler(logging.Handler):
    """Hands every record on as a line without its end."""

    def __init__(self, send: Callable[[str], Any], role: str, worker: str) -> None:
        """`send` takes a line; `role` and `worker` say whose process this is."""
        super().__init__()
        self._send = send
        self._process = {"role": role, "worker": worker}

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            self._send(self._line(record))
        except Exception:  # noqa: BLE001  a line that is lost must not end a run; logging tells it on stderr
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values: dict[str, Any] = {"time": time, "level": record.levelname, **self._process}
        # What a record says by `extra` counts more: a fleet speaks of its workers.
        values["worker"] = getattr(record, "worker", values["worker"])
        iteration = getattr(record, "iteration", _iteration.get())
        if iteration is not None:
            values["iteration"] = iteration
        values["message"] = redact(record.getMessage())
        if record.exc_info:
            values["exception"] = redact(logging.Formatter().formatException(record.exc_info))
        return json.dumps(values, ensure_ascii=False)


def log_lines(send: Callable[[str], Any], role: str, worker: str) -> LineHandler:
    """From now on `send` gets every line that this process logs, from INFO on."""
    handler = LineHandler(send, role, worker)
    for name in OUR_LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    return handler


def end_lines(handler: LineHandler) -> None:
    """Undo `log_lines`."""
    for name in OUR_LOGGERS:
        logging.getLogger(name).removeHandler(handler)
