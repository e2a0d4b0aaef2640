"""The checkpoints of a run, on a disk or in object storage: each is used whole, or not at all.

A kill, a full disk or a worn one can leave half of any file, and of any index of files. So there is no index: each
checkpoint is a folder whose manifest, written last, holds the SHA-256 of its files, and the newest that keeps to its
manifest is where a run is taken up.
"""

import hashlib
import json
import re
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, SubTreeFileSystem

from pipeline.config import RunSettings
from pipeline.object_storage import is_object_storage
from pipeline.patience import NO_PATIENCE, Patience, StorageError, in_megabytes
from pipeline.run_folder import CHECKPOINTS_FOLDER

MANIFEST_FILE = "manifest.json"
UNFINISHED_MANIFEST = ".manifest.json.partial"

FOLDER_NAME = re.compile(r"iteration_\d{6}")

Files = dict[str, bytes]
"""The content of the files of a checkpoint, by name."""


class CheckpointDamagedError(RuntimeError):
    """The files of a checkpoint are not those that were written."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """The newest checkpoint that is whole, None where the run has not written any.

    Attributes:
        name: its folder, such as iteration_000012.
        files: what it holds.
        skipped: newer ones that are not whole, newest first, each with the reason in words.
    """

    name: str | None
    files: Files | None
    skipped: tuple[str, ...] = ()

    def explanation(self) -> str:
        """What was passed over and what is used instead, in one line; empty where nothing was."""
        if not self.skipped:
            return ""
        instead = f"going on from {self.name}" if self.name else "beginning anew"
        return f"{'; '.join(self.skipped)}: {instead}"


@dataclass(frozen=True)
class CheckpointStore:
    """Writes and finds checkpoints in a folder of their own.

    Attributes:
        location: the folder, an absolute path or a URI that pyarrow knows, such as s3://bucket/runs/demo/checkpoints.
        keep: how many are kept.
        patience: with storage that fails.
    """

    location: str
    keep: int
    patience: Patience = NO_PATIENCE

    def check_visible(self) -> None:
        """Refuse to look for checkpoints where the folder of the run is not: there would seem to be none.

        Raises:
            ValueError: what to change.
        """
        folder = Path(self.location).parent
        if not is_object_storage(self.location) and not folder.is_dir():
            raise ValueError(
                f"there is no {folder} on {socket.gethostname()}, where the learner was placed; let output_dir be a "
                "folder that all nodes share, or a bucket"
            )

    def save(self, next_iteration: int, files: Files) -> None:
        """Write the checkpoint of a run that makes `next_iteration` next, then delete those beyond the newest `keep`.

        Those of the same and of later iterations are deleted first: a run that had passed over them, because they were
        not whole, has caught up with them.

        Raises:
            StorageError: the storage refuses; older checkpoints stay as they were.
        """
        name = f"iteration_{next_iteration:06d}"
        size = in_megabytes(sum(map(len, files.values())))
        self.patience.keep_trying(
            f"write the checkpoint {name} ({size}) into {self.location}", lambda: self._save(name, files)
        )
        self.patience.keep_trying(f"delete old checkpoints in {self.location}", self._delete_outdated)

    def _save(self, name: str, files: Files) -> None:
        filesystem, path = FileSystem.from_uri(self.location)
        # Not the run folder too: where it is gone, its disk is, and what takes its place is another one.
        filesystem.create_dir(path, recursive=False)
        for outlived in (found for found in self.names() if found >= name):
            self._folder.delete_dir(outlived)
        self._folder.create_dir(name)
        for file, content in files.items():
            self._write(f"{name}/{file}", content)
        self._write(f"{name}/{UNFINISHED_MANIFEST}", _manifest_of(files))
        self._folder.move(f"{name}/{UNFINISHED_MANIFEST}", f"{name}/{MANIFEST_FILE}")

    def _delete_outdated(self) -> None:
        for outdated in self.names()[: -self.keep]:
            self._folder.delete_dir(outdated)

    def newest(self) -> FoundCheckpoint:
        """Read the newest checkpoint that is whole.

        Raises:
            ValueError: there are checkpoints, and none is whole.
            StorageError: the storage does not answer.
        """
        names = self.patience.keep_trying(f"list {self.location}", self.names)
        skipped: list[str] = []
        for name in reversed(names):
            try:
                return FoundCheckpoint(name, self.load(name), tuple(skipped))
            except CheckpointDamagedError as damage:
                skipped.append(f"checkpoint {name} is passed over, {damage}")
        # A run that is killed while it writes its first checkpoint leaves one without a manifest, and nothing else.
        if len(names) <= 1 and not any(self._exists(f"{name}/{MANIFEST_FILE}") for name in names):
            return FoundCheckpoint(None, None, tuple(skipped))
        raise ValueError(
            f"no checkpoint in {self.location} is whole ({'; '.join(skipped)}); bring one back from a copy of the "
            "folder, or start a new run with --config: going on without one would begin anew and drop the metrics"
        )

    def load(self, name: str) -> Files:
        """The files of one checkpoint, if they are those that its manifest states.

        Raises:
            CheckpointDamagedError: a file is missing, unreadable or another one.
        """
        if not self._exists(f"{name}/{MANIFEST_FILE}"):
            raise CheckpointDamagedError(f"it has no {MANIFEST_FILE}, so its writing came to no end")
        stated = _read_manifest(self._read(f"{name}/{MANIFEST_FILE}"))
        files = {file: self._read(f"{name}/{file}") for file in stated}
        for file, content in files.items():
            if hashlib.sha256(content).hexdigest() != stated[file]:
                raise CheckpointDamagedError(f"its {file} is not the file that {MANIFEST_FILE} states")
        return files

    def names(self) -> list[str]:
        """The folders of all checkpoints, whole or not, oldest first."""
        entries = self._folder.get_file_info(FileSelector("", allow_not_found=True))
        return sorted(
            entry.path for entry in entries if entry.type == FileType.Directory and FOLDER_NAME.fullmatch(entry.path)
        )

    @cached_property
    def _folder(self) -> FileSystem:
        filesystem, path = FileSystem.from_uri(self.location)
        return SubTreeFileSystem(path, filesystem)

    def _exists(self, path: str) -> bool:
        info = self.patience.keep_trying(
            f"look for {path} in {self.location}", lambda: self._folder.get_file_info(path)
        )
        return bool(info.type == FileType.File)

    def _read(self, path: str) -> bytes:
        def read() -> bytes:
            with self._folder.open_input_stream(path) as stream:
                content: bytes = stream.read()
            return content

        if not self._exists(path):
            raise CheckpointDamagedError(f"its {path.split('/')[-1]} is missing")
        try:
            return self.patience.keep_trying(f"read {path} in {self.location}", read)
        except StorageError as error:
            raise CheckpointDamagedError(str(error)) from error

    def _write(self, path: str, content: bytes) -> None:
        with self._folder.open_output_stream(path) as stream:
            stream.write(pa.py_buffer(content))


def checkpoints_of_run(settings: RunSettings, run_directory: Path) -> CheckpointStore:
    """The checkpoints in a run folder; where `output_dir` is in object storage, those lie there and not in the copy."""
    stored = is_object_storage(settings.output_dir)
    return CheckpointStore(
        location=f"{settings.location if stored else run_directory.resolve()}/{CHECKPOINTS_FOLDER}",
        keep=settings.checkpoint.keep,
        patience=Patience(settings.checkpoint.retry_seconds),
    )


def _manifest_of(files: Files) -> bytes:
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    return json.dumps({"sha256": sums}, indent=2).encode()


def _read_manifest(content: bytes) -> dict[str, str]:
    """The SHA-256 of each file, by name.

    Raises:
        CheckpointDamagedError: it is no manifest.
    """
    try:
        sums = json.loads(content)["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointDamagedError(f"its {MANIFEST_FILE} is damaged") from error
    if not isinstance(sums, dict) or not sums:
        raise CheckpointDamagedError(f"its {MANIFEST_FILE} is damaged")
    return sums
