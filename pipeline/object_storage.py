"""Run folders in object storage, such as s3://bucket/runs/demo, through pyarrow's file systems.

A run writes into a folder on the driver's disk, whose files are copied there, and its checkpoints go there at once. An
object appears whole or not at all, and the metrics of an iteration are there before its checkpoint is. A run that is
taken up fetches what it needs.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from pipeline.bucket_lock import held_alone_in_bucket
from pipeline.patience import NO_PATIENCE, Patience, StorageError
from pipeline.run_folder import CHECKPOINTS_FOLDER, RECORDS_FOLDER
from pipeline.run_lock import held_alone

ONLY_ADDED_TO = (CHECKPOINTS_FOLDER, RECORDS_FOLDER, "tensorboard")
"""Folders that a run which is taken up does not read, but the learner its checkpoints."""


def is_object_storage(location: str) -> bool:
    """Whether a location is the URI of an object store, and no path."""
    return "://" in location


def exists(location: str) -> bool:
    """Whether there is a path, or an object of that name or below it.

    Raises:
        ValueError: the object store does not answer.
    """
    if not is_object_storage(location):
        return Path(location).exists()
    filesystem, path = _open(location)
    return bool(filesystem.get_file_info(path).type != FileType.NotFound)


def read_text(location: str) -> str:
    """The text of an object.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the object store does not answer.
    """
    filesystem, path = _open(location)
    with filesystem.open_input_stream(path) as stream:
        text: str = stream.read().decode()
    return text


class Mirror:
    """Copies the files of a folder to an object store, those alone that have changed since it did so last."""

    def __init__(self, folder: Path, location: str, patience: Patience, leave_out: tuple[str, ...] = ()) -> None:
        """`leave_out` names entries of the folder that are neither fetched nor pushed."""
        self.folder = folder
        self.location = location
        self.patience = patience
        self.leave_out = leave_out
        self._pushed: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Fill the folder with what is there.

        Raises:
            StorageError: the store refuses.
        """
        self.patience.keep_trying(f"read {self.location}", self._fetch)

    def recognise(self) -> None:
        """Take files that another mirror has fetched, and nobody has changed since, for pushed.

        Raises:
            StorageError: the store refuses.
        """
        self.patience.keep_trying(f"read {self.location}", self._recognise)

    def push(self) -> None:
        """Copy files that are new or have changed; what is being written, and so has a hidden name, is left out.

        Raises:
            StorageError: the store refuses.
        """
        self.patience.keep_trying(f"write into {self.location}", self._push)

    def remove(self, names: Callable[[str], bool], below: str) -> None:
        """Delete what is there in the folder `below`, of the names that are asked for, which begin with that folder.

        Raises:
            StorageError: the store refuses.
        """
        self.patience.keep_trying(f"delete in {self.location}", lambda: self._remove(names, below))

    def _fetch(self) -> None:
        filesystem, root = FileSystem.from_uri(self.location)
        for name in _copy(filesystem, root, self.folder, lambda name: name.split("/")[0] not in self.leave_out):
            self._pushed[name] = _state_of(self.folder / name)

    def _recognise(self) -> None:
        filesystem, root = FileSystem.from_uri(self.location)
        for name, entry in _files_below(filesystem, root):
            if (self.folder / name).is_file() and _state_of(self.folder / name) == (entry.mtime_ns, entry.size):
                self._pushed[name] = (entry.mtime_ns, entry.size)

    def _push(self) -> None:
        filesystem, root = FileSystem.from_uri(self.location)
        for file in sorted(self.folder.rglob("*")):
            parts = file.relative_to(self.folder).parts
            name = "/".join(parts)
            if parts[0] in self.leave_out or any(part.startswith(".") for part in parts) or not file.is_file():
                continue
            state = _state_of(file)
            if self._pushed.get(name) != state:
                content = file.read_bytes()
                with filesystem.open_output_stream(f"{root}/{name}") as stream:
                    stream.write(content)
                self._pushed[name] = state

    def _remove(self, names: Callable[[str], bool], below: str) -> None:
        filesystem, root = FileSystem.from_uri(self.location)
        for name, entry in list(_files_below(filesystem, f"{root}/{below}")):
            if names(f"{below}/{name}"):
                filesystem.delete_file(entry.path)
                self._pushed.pop(f"{below}/{name}", None)


@contextmanager
def working_folder(location: str, retry_seconds: float) -> Iterator[Path]:
    """The folder on this disk that a run writes into: `location` itself if it is a path, else a copy of what is there.

    What the driver leaves in a copy is pushed when the work ends, in whatever way; the journal pushes meanwhile. One
    process at a time works on either.

    Raises:
        StorageError: the object store refuses what is to be pushed, which then stays on this disk.
        ValueError: it cannot be written to from the beginning, or another process works on it.
    """
    if not is_object_storage(location):
        with held_alone(Path(location)):
            yield Path(location)
        return
    filesystem, path = _open(location)
    try:
        NO_PATIENCE.keep_trying(f"write into {location}", lambda: filesystem.create_dir(path))
    except StorageError as error:
        raise ValueError(_hint(location, error)) from error
    with held_alone_in_bucket(location), _copy_to_work_on(location, Patience(retry_seconds)) as folder:
        yield folder


@contextmanager
def _copy_to_work_on(location: str, patience: Patience) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tailorpo-"))
    mirror = Mirror(folder, location, patience, leave_out=ONLY_ADDED_TO)
    try:
        mirror.fetch()
    except StorageError as error:
        shutil.rmtree(folder)
        raise ValueError(_hint(location, error)) from error
    try:
        yield folder
    finally:
        try:
            mirror.push()
        except StorageError as error:
            # With the folder the adapter and the evaluation of a finished run would go.
            raise StorageError(f"{error}; what is missing there stays in {folder}") from error
        shutil.rmtree(folder)


@contextmanager
def folder_to_read(location: str, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
    """`location` itself if it is a path, else a copy of its files that are wanted, with the times of the objects.

    Args:
        location: a run folder.
        is_wanted: told the name of a file below it, with slashes.

    Raises:
        ValueError: the object store does not answer.
    """
    if not is_object_storage(location):
        yield Path(location)
        return
    filesystem, root = _open(location)
    with tempfile.TemporaryDirectory(prefix="tailorpo-") as folder:
        try:
            _copy(filesystem, root, Path(folder), is_wanted)
        except OSError as error:
            raise ValueError(_hint(location, error)) from error
        yield Path(folder)


def _copy(filesystem: FileSystem, root: str, folder: Path, is_wanted: Callable[[str], bool]) -> list[str]:
    """Objects below `root` as files below `folder`, as old as they are; the names of those copied."""
    names = []
    for name, entry in _files_below(filesystem, root):
        if not is_wanted(name):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.open_input_stream(entry.path) as stream:
            target.write_bytes(stream.read())
        os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
        names.append(name)
    return names


def _files_below(filesystem: FileSystem, root: str) -> Iterator[tuple[str, FileInfo]]:
    """Every object below `root`, by its name there."""
    for entry in filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True)):
        if entry.type == FileType.File:
            yield entry.path.removeprefix(f"{root}/"), entry


def _state_of(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _open(location: str) -> tuple[FileSystem, str]:
    try:
        filesystem, path = FileSystem.from_uri(location)
        filesystem.get_file_info(path)
    except (OSError, ValueError) as error:
        raise ValueError(_hint(location, error)) from error
    return filesystem, path


def _hint(location: str, error: Exception) -> str:
    return (
        f"{location} cannot be used: {error}; it must lie in a bucket that exists, s3:// or gs://, with credentials "
        "where that store's own tools look for them"
    )
