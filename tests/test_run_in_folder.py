"""The runs of comparisons and of claims hold their own folders, which jobs/align.py could be at work on."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from settings import miniature_settings

from actors.claims import align_arm
from actors.comparison import align_in_folder
from pipeline.claims.arms import Arm
from pipeline.config import RunSettings


class AligningError(Exception):
    """Raised where the run would begin."""


@pytest.fixture
def run(tmp_path: Path) -> RunSettings:
    return miniature_settings(Path("some/model"), name="one", output_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("actors.run_in_folder", lambda settings, folder: align_in_folder({}, None, settings, folder)),
        ("actors.claims", lambda settings, _folder: align_arm(Arm("one", settings))),
    ],
    ids=["comparison", "claims"],
)
def test_the_folder_of_a_run_is_held_from_its_first_file_on(
    monkeypatch: pytest.MonkeyPatch, run: RunSettings, module: str, make: Callable[[RunSettings, Path], None]
) -> None:
    folder = Path(run.location)

    def look(_settings: RunSettings, run_directory: Path, *_: object) -> None:
        assert run_directory == folder
        with (folder.parent / ".one.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise AligningError

    monkeypatch.setattr(f"{module}.describe_and_align", look)
    with pytest.raises(AligningError):
        make(run, folder)
    with (folder.parent / ".one.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
