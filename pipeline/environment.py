"""environment.json: versions, hardware and the state of the code, so that a run can be believed later."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "ray", "diffusers", "transformers", "peft", "pyarrow", "numpy", "safetensors", "pydantic")


def describe_environment() -> dict[str, Any]:
    """Plain values for JSON; no environment variable is recorded, since some hold secrets."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "git": _git_state(Path(__file__).parent),
    }


def _git_state(directory: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None where the code is not in a git checkout or git is missing."""
    try:
        commit = _git(directory, "rev-parse", "HEAD").strip()
        return {"commit": commit, "modified_files": _git(directory, "status", "--porcelain", "-uno").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=directory, check=True, capture_output=True, text=True).stdout
