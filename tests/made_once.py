"""What is dear to make and read by many tests is made once, also where pytest-xdist runs them in several processes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this test session, filled by `make` in whichever process asks for it first."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the process which started the workers
    folder, is_whole = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not is_whole.exists():
            folder.mkdir()
            make(folder)
            is_whole.touch()
    return folder
