"""The run folder: what a run leaves behind so that it can be believed, and taken up again."""

import json
import math
import os
from pathlib import Path
from typing import Any

CONFIG_FILE, SUMMARY_FILE = "config.yaml", "summary.json"
"""What a run writes first, and what it writes last."""

ENVIRONMENT_FILE = "environment.json"
"""Written anew whenever a run is started or taken up."""

METRICS_FILE, CHECKPOINTS_FOLDER, RECORDS_FOLDER = "metrics.jsonl", "checkpoints", "records"
"""What iterations leave behind, and what a run is taken up from."""

PREFERENCES_FILE = "preferences.json"
"""What a run that learns from pairs of images states of them, with their hash."""

LOG_FILE, ERROR_FILE = "log.jsonl", "error.log"
"""What a run said while it went on, and why it ended early."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as indented JSON, in which what is no finite number is null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _to_line(metrics: dict[str, Any]) -> str:
    """A line of strict JSON, in which a mean over nothing is null."""
    return json.dumps(_finite(metrics), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same value with None for every NaN and infinity in it: JSON knows neither."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """metrics.jsonl: one JSON object per iteration, every iteration exactly once."""

    def __init__(self, path: Path) -> None:
        """Open an existing file to append to, or prepare a new one."""
        self.path = path
        self._whole_bytes: int | None = None

    def keep_before(self, iteration: int) -> list[dict[str, Any]]:
        """Drop what a killed run wrote at or after `iteration`, half a line included; return what stays."""
        kept = [metrics for metrics in self.read() if metrics["iteration"] < iteration]
        write_text(self.path, "".join(_to_line(metrics) for metrics in kept))
        self._whole_bytes = None
        return kept

    def append(self, metrics: dict[str, Any]) -> None:
        """Add one iteration; it is on the disk when this returns.

        Raises:
            OSError: it is not, or not as a whole; the next call writes over what is there of it.
        """
        line = _to_line(metrics).encode()
        with self.path.open("ab") as file:
            if self._whole_bytes is None:
                self._whole_bytes = file.tell()
            if file.tell() < self._whole_bytes:
                raise OSError(f"{self.path} is shorter than what was written to it")
            file.truncate(self._whole_bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole_bytes += len(line)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        # What follows the last newline was cut off by a kill.
        return [json.loads(line) for line in lines[:-1]]
