"""What a run folder says of its run before the first iteration."""

import json
import logging
from pathlib import Path
from typing import Any

from pipeline.config import RunSettings
from pipeline.config_loading import dump_settings
from pipeline.environment import checksum_of_module, describe_environment
from pipeline.preflight import own_modules
from pipeline.reward_roles import reward_roles
from pipeline.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, write_json, write_text
from pipeline.secrets import redact_values

logger = logging.getLogger(__name__)


def describe_run(settings: RunSettings, run_directory: Path, circumstances: dict[str, Any]) -> None:
    """Write config.yaml once, environment.json with `circumstances`, and rewards.json where there are several.

    environment.json has the SHA-256 of every module outside the project that the method or a reward comes from; a
    warning says which of them changed while the run was interrupted.
    """
    own = {path.name: checksum_of_module(path) for path in own_modules(settings)}
    _warn_of_changes(run_directory / ENVIRONMENT_FILE, own)
    if not (run_directory / CONFIG_FILE).is_file():
        write_text(run_directory / CONFIG_FILE, dump_settings(settings))
    write_json(
        run_directory / ENVIRONMENT_FILE, redact_values(describe_environment() | {"own_modules": own} | circumstances)
    )
    if len(settings.rewards) > 1:
        write_json(run_directory / "rewards.json", reward_roles(settings))


def _warn_of_changes(described: Path, own: dict[str, str]) -> None:
    if not own or not described.is_file():
        return
    before = json.loads(described.read_text(encoding="utf-8")).get("own_modules", {})
    changed = [name for name, checksum in own.items() if before.get(name, checksum) != checksum]
    if changed:
        logger.warning(
            "%s is not what this run was made with so far; put the old text back, or what follows is by another method "
            "or reward than what there is",
            ", ".join(changed),
        )
