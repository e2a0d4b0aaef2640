"""Which run of a tracking service belongs to a run folder, and which iterations that service has."""

import json
from pathlib import Path

from pydantic import BaseModel

from pipeline.run_folder import write_text


class Bookmark(BaseModel):
    """A JSON file beside the metrics, such as wandb.json.

    It counts an iteration once the service has it for good: a kill before that makes the service take it again.
    """

    run_id: str
    next_iteration: int = 0


def read_bookmark(path: Path) -> Bookmark | None:
    """The bookmark of an interrupted run; None for a new one."""
    return Bookmark(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write_bookmark(path: Path, bookmark: Bookmark) -> None:
    """Keep it, whole or not at all."""
    write_text(path, bookmark.model_dump_json() + "\n")
