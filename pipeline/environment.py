"""environment.json: versions, hardware and the state of the code, so that a run can be believed later."""

import hashlib
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CODE = ("actors", "jobs", "pipeline")
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
        "code_sha256": checksum_of_code(Path(__file__).parents[1]),
    }


def checksum_of_code(root: Path) -> str:
    """SHA-256 of this project's programs, names and contents; what `ray job submit` sends does not know its commit."""
    return _checksum_of_files([file for package in CODE for file in (root / package).rglob("*.py")], root)


def checksum_of_module(path: Path) -> str:
    """SHA-256 of a module, or of all programs of a package."""
    return _checksum_of_files([path] if path.is_file() else list(path.rglob("*.py")), path.parent)


def _checksum_of_files(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _git_state(directory: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None where the code is not in a git checkout or git is missing."""
    try:
        commit = _git(directory, "rev-parse", "HEAD").strip()
        return {"commit": commit, "modified_files": _git(directory, "status", "--porcelain").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=directory, check=True, capture_output=True, text=True).stdout
