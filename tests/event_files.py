"""Files that trackers leave behind, read back."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

WANDB_HEADER_BYTES, WANDB_BLOCK_BYTES = 7, 32768
WHOLE, LAST = 1, 4


def read_events(file: Path) -> Iterator[Event]:
    """The events of a TensorBoard file: records of length, its checksum, the event, its checksum."""
    with file.open("rb") as stream:
        while header := stream.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            yield Event.FromString(stream.read(length))
            stream.seek(4, os.SEEK_CUR)


def read_wandb_records(file: Path) -> Iterator[Record]:
    """The records of an off-line run: blocks of 32 KiB of pieces, each after a header of checksum, length and kind."""
    content, position, record = file.read_bytes(), WANDB_HEADER_BYTES, b""
    while position + WANDB_HEADER_BYTES <= len(content):
        left = WANDB_BLOCK_BYTES - position % WANDB_BLOCK_BYTES
        if left < WANDB_HEADER_BYTES:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + WANDB_HEADER_BYTES])
        position += WANDB_HEADER_BYTES
        record += content[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            yield Record.FromString(record)
            record = b""
