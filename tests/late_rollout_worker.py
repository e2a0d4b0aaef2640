"""A rollout worker that comes late; workers import it by its name."""

from pathlib import Path
from typing import Any

from eventually import wait_until

from actors.rollout import RolloutWorker
from pipeline.config import RunSettings


class LateRolloutWorker(RolloutWorker):
    """Loads when there is a file."""

    def __init__(self, settings: RunSettings, reward_fleet: Any, file: Path) -> None:
        wait_until(file.exists)
        super().__init__(settings, reward_fleet)
