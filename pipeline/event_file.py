"""TensorBoard's view of the metrics.

tensorboardX's SummaryWriter leaves events to a thread. A full disk ends that thread with a line on some terminal, and
ten events later whoever adds one waits for ever. So events are written here before the call returns, or it raises.
"""

import itertools
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import Summary


class EventFile:
    """Events in a file that begins with the first iteration added to it; TensorBoard forgets older ones from there on.

    After a failure the next events begin another file, for nothing is read behind a cut-off event.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: EventsWriter | None = None
        self._numbers = itertools.count()

    def add(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Write the values of an iteration.

        Raises:
            OSError: they are not written; they can be added again.
        """
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        writer, self._writer = self._writer, None
        if writer is None:
            writer = self._open(iteration)
        writer.write_event(Event(wall_time=time.time(), step=iteration, summary=Summary(value=values)))
        writer.flush()
        self._writer = writer

    def _open(self, iteration: int) -> EventsWriter:
        self._directory.mkdir(parents=True, exist_ok=True)
        # Names hold the second of their making, and another file of the same second must not replace the first.
        writer = EventsWriter(str(self._directory / "events"), f".from_{iteration:06d}.{next(self._numbers)}")
        writer.write_event(
            Event(wall_time=time.time(), step=iteration, session_log=SessionLog(status=SessionLog.START))
        )
        return writer
