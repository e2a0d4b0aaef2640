"""How long a comparison has taken, over all its interruptions."""

import json
import logging
from pathlib import Path
from time import monotonic

from pipeline.run_folder import write_json

logger = logging.getLogger(__name__)

TIME_FILE = "time.json"


class Stopwatch:
    """Adds the time that this process works on a comparison to that of those before it.

    A process that is killed counts up to its last note.
    """

    def __init__(self, folder: Path) -> None:
        """Begin to count; `folder` is the comparison's, and need not exist yet."""
        self._file = folder / TIME_FILE
        self._before = seconds_spent(folder) or 0.0
        self._begun = monotonic()

    def note(self) -> None:
        """Write down the time until now; a disk that does not take it ends nothing, and the next note tells it too."""
        try:
            write_json(self._file, {"seconds": self._before + monotonic() - self._begun})
        except OSError as error:
            logger.warning("%s was not written, for %s", self._file, error)


def seconds_spent(folder: Path) -> float | None:
    """Wall time of everything done for the comparison in `folder` so far; None where nothing was noted."""
    file = folder / TIME_FILE
    return float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) if file.is_file() else None
