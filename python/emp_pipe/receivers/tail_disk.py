"""What the tail asks of the disk: opening only what is a file, reading it, packed ones too, and telling text from what is none.

Everything here may wait for a disk: it is called in the reader's thread. Not here: what is done with it (`tail_file.py`).
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from typing import Protocol

from emp_pipe.receivers.tail_position import HEAD_BYTES, FileId, Position

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SNIFF_BYTES = 4096
_LEAST_HEAD_BYTES = 16
_MOST_OF_NO_TEXT = 0.05
_MOST_CONTROLS = 8
"""So few are no sign of anything, however short a file is."""
_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r\b\x1b\0")


class NoFile(OSError):
    """It is there and no file that could be read: a pipe, a socket, a device, a directory."""


class Readable(Protocol):
    """An open file."""

    file: FileId
    packed: bool
    """Offsets are those of what is inside."""

    def read_into(self, view: memoryview, offset: int) -> int: ...
    def read(self, size_bytes: int, offset: int) -> bytes: ...
    def stat(self) -> os.stat_result: ...
    def close(self) -> None: ...


class PlainFile:
    """A file as it is."""

    packed = False

    def __init__(self, descriptor: int, known: os.stat_result) -> None:
        self._descriptor = descriptor
        self.file = FileId.of(known)

    def read_into(self, view: memoryview, offset: int) -> int:
        return os.preadv(self._descriptor, [view], offset)

    def read(self, size_bytes: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size_bytes, offset)

    def skip_hole(self, offset: int) -> int:
        """Return where after `offset` data begins that was written: `offset` itself, or the end of a hole there."""
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA)
        except OSError:
            return offset

    def stat(self) -> os.stat_result:
        return os.fstat(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class PackedFile:
    """What is inside of a `.gz`; read on and on, going back is slow. Raises EOFError or zlib.error where it is torn."""

    packed = True

    def __init__(self, descriptor: int, known: os.stat_result) -> None:
        self._raw = os.fdopen(descriptor, "rb")
        self._inside = gzip.GzipFile(fileobj=self._raw, mode="rb")
        self.file = FileId.of(known)

    def read_into(self, view: memoryview, offset: int) -> int:
        data = self.read(len(view), offset)
        view[: len(data)] = data
        return len(data)

    def read(self, size_bytes: int, offset: int) -> bytes:
        try:
            if self._inside.tell() != offset:
                self._inside.seek(offset)
            if self._inside.tell() != offset:
                return b""
            return self._inside.read(size_bytes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"the packed file is torn ({error})") from error

    def stat(self) -> os.stat_result:
        return os.fstat(self._raw.fileno())

    def close(self) -> None:
        self._inside.close()
        self._raw.close()


def open_file(path: str) -> PlainFile | PackedFile:
    """Open a regular file without waiting for anybody. Raises OSError; NoFile where it is none."""
    known = os.stat(path)
    if not stat.S_ISREG(known.st_mode):  # before it is opened: a device may do something, a pipe wait for its writer
        raise NoFile(f"it is a {kind_of(known.st_mode)}")
    descriptor = os.open(path, _FLAGS)
    try:
        opened = os.fstat(descriptor)
        if not stat.S_ISREG(opened.st_mode):
            raise NoFile(f"it is a {kind_of(opened.st_mode)}")
        return (PackedFile if path.endswith(".gz") else PlainFile)(descriptor, opened)
    except BaseException:
        os.close(descriptor)
        raise


def kind_of(mode: int) -> str:
    """Return what a mode that is no regular file's says."""
    kinds = {
        stat.S_IFIFO: "named pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFDIR: "directory",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def holds(opened: Readable, position: Position) -> bool:
    """Return whether a file holds what was read until a position: the same beginning, and the same bytes before the offset."""
    tail = position.tail
    try:
        return position.head.fits(opened.read(max(position.head.size, 1), 0)) and (
            not position.offset
            or (tail.size > 0 and tail.fits(opened.read(tail.size, position.offset - tail.size)))
            or (tail.size == 0 and len(opened.read(1, position.offset - 1)) == 1)
        )
    except OSError:
        return False


def begins_as(opened: Readable, position: Position) -> bool:
    """Return whether a file begins as the one of a position, as far as either goes."""
    head = opened.read(position.head.size, 0)
    if len(head) < _LEAST_HEAD_BYTES:
        return False
    return position.head.fits(head) or (bool(position.head_bytes) and position.head_bytes.startswith(head))


def prefix_bytes(opened: Readable, position: Position) -> int:
    """Return the size of a file that begins as the one of a position and ends before it: a copy that was made earlier. 0: it is none."""
    try:
        if not begins_as(opened, position):
            return 0
        size_bytes = opened.stat().st_size
        if opened.packed:
            size_bytes = 0
            while piece := opened.read(1 << 20, size_bytes):
                size_bytes += len(piece)
                if size_bytes >= position.offset:
                    return 0
        return size_bytes if size_bytes < position.offset else 0
    except OSError:
        return 0


def head_of(opened: Readable) -> bytes:
    """Return the first bytes of a file, of which its fingerprint is taken."""
    return opened.read(HEAD_BYTES, 0)


def last_line_start(opened: Readable, size_bytes: int) -> int:
    """Return where the last line of so many bytes begins that has not ended; where it ended, or is very long, their end."""
    start = max(size_bytes - 65_536, 0)
    end = opened.read(size_bytes - start, start).rfind(b"\n")
    return start + end + 1 if end >= 0 else (0 if start == 0 else size_bytes)


def no_text(data: bytes) -> str:
    """Return what the beginning of a file is when it is no text that can be read, else ""."""
    data = data[:_SNIFF_BYTES]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf16"
    data = data.lstrip(b"\0")  # the hole that a writer leaves when its file is truncated under it
    if len(data) < 16:
        return ""
    nul_even, nul_odd = data[::2].count(0), data[1::2].count(0)
    if max(nul_even, nul_odd) > 0.3 * len(data) / 2 and min(nul_even, nul_odd) < 0.05 * len(data) / 2:
        return "utf16"
    controls = len(data) - len(data.translate(None, _CONTROLS)) + nul_even + nul_odd
    return "binary" if controls > max(_MOST_OF_NO_TEXT * len(data), _MOST_CONTROLS) else ""
