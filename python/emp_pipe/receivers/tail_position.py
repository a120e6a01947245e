"""Where in which file reading goes on: the value of a checkpoint, and how a file is known again that has another name by then.

A position names the file (device and inode) and proves itself by its content: a fingerprint of the file's first bytes, and one of the
bytes just before the offset. An inode may be used again, a file may be rewritten in place or be a copy, but no other file has both.
Not here: who looks for it where (`tail_rotation.py`), when it is committed (`tail_reader.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

HEAD_BYTES = 1024
"""So much of a file's beginning is its fingerprint; of a shorter one what there is."""
TAIL_BYTES = 64


class FileId(NamedTuple):
    """Which file, whatever it is called, until it is deleted and its inode used again."""

    device: int
    inode: int

    @staticmethod
    def of(stat: os.stat_result) -> FileId:
        return FileId(stat.st_dev, stat.st_ino)


class Print(NamedTuple):
    """A fingerprint of so many bytes; of none it fits anything."""

    size: int
    digest: str

    @staticmethod
    def of(data: bytes) -> Print:
        return Print(len(data), hashlib.blake2b(data, digest_size=8).hexdigest() if data else "")

    def fits(self, data: bytes) -> bool:
        """Return whether `data`, of the same place, begins with what the fingerprint was taken of."""
        return len(data) >= self.size and Print.of(data[: self.size]) == self


NO_PRINT = Print(0, "")


@dataclass(frozen=True, slots=True)
class Position:
    """All before `offset` is in rows. `parts`: rows that the line at the offset is already in, where it is longer than the limit."""

    file: FileId
    offset: int = 0
    parts: int = 0
    head: Print = NO_PRINT
    tail: Print = NO_PRINT
    modified_unix_nano: int = 0
    head_bytes: bytes = b""
    """What `head` is the fingerprint of, while it is known: a shorter copy is known by it."""


def encode(positions: Sequence[Position]) -> bytes:
    """Return the value of the checkpoint of a path: the files that are read under its name, the oldest first."""
    return json.dumps(
        [[*p.file, p.offset, p.parts, *p.head, *p.tail, p.modified_unix_nano] for p in positions], separators=(",", ":")
    ).encode()


def decode(value: bytes) -> list[Position]:
    """Return the positions in a checkpoint's value. Raises ValueError where it is none."""
    rows: Any = json.loads(value)
    try:
        return [
            Position(FileId(int(d), int(i)), int(o), int(n), Print(int(hs), str(h)), Print(int(ts), str(t)), int(m))
            for d, i, o, n, hs, h, ts, t, m in rows
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"no positions of files: {error}") from error
