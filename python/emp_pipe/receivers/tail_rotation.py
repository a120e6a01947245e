"""Where a file has gone that was read under a path: what rotation names beside it, and which of them hold what is still to be read.

    app.log        app.log.1  app.log-20251124.gz  app-20251124.log  app__2025-11-24_00-00-00.log.gz  app.log.old

By rename (the inode is the same) or by copy (the content is); packed or not. Rotated files that are newer than the one that was read last
were written and rotated away while nobody looked: they are read from their beginning. Age is the time of the last change, which
rotation keeps. A clock that jumped may make what was finished long ago look new: so what was finished is remembered, and known again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from emp_pipe.receivers.tail_disk import PackedFile, PlainFile, holds, open_file, prefix_bytes
from emp_pipe.receivers.tail_position import FileId, Position

_STAMP = r"[-_.]{1,2}\d[\dTtZz:_.+-]*"
_MOST_CANDIDATES = 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that rotation may have made of the one at a path."""

    path: str
    file: FileId
    modified_unix_nano: int


@dataclass(frozen=True, slots=True)
class Found:
    """An open file and where in it to go on; None: at its beginning."""

    path: str
    opened: PlainFile | PackedFile
    position: Position | None


@dataclass(frozen=True, slots=True)
class Traced:
    """What is to be read beside the path itself, the oldest first. `lost`: positions of which nothing was found."""

    found: Sequence[Found]
    lost: Sequence[Position]


@lru_cache(4096)
def _rotated_name(name: str) -> re.Pattern[str]:
    stem, dot, ending = name.rpartition(".")
    whole = rf"{re.escape(name)}(?:{_STAMP}|\.old|\.bak|\.prev)"
    inside = rf"{re.escape(stem)}{_STAMP}\.{re.escape(ending)}" if dot and stem else whole
    return re.compile(rf"(?:{whole}|{inside})(?:\.gz)?")


def is_rotated_name(name: str, of: str) -> bool:
    """Return whether a file's name is one that rotation gives to the file `of`."""
    return _rotated_name(of).fullmatch(name) is not None


def candidates(path: str) -> list[Candidate]:
    """Return the files beside `path` that have a name as rotation gives it, the oldest first."""
    directory, name = os.path.split(path)
    pattern = _rotated_name(name)
    found = []
    try:
        with os.scandir(directory or ".") as entries:
            for entry in entries:
                if pattern.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        known = entry.stat()
                        if entry.is_file():
                            found.append(Candidate(entry.path, FileId.of(known), known.st_mtime_ns))
    except OSError:
        return []
    # Where the times are the same: app.log.2 is older than app.log.1, a later date is younger.
    found.sort(key=lambda one: (one.modified_unix_nano, [-int(digits[:18]) for digits in re.findall(r"\d+", one.path[len(directory) :])]))
    return found[-_MOST_CANDIDATES:]


def trace(
    path: str,
    positions: Sequence[Position],
    known: Collection[FileId],
    own: Collection[str],
    *,
    newer_than_unix_nano: int | None,
    ended: Sequence[Position] = (),
    unlike: bytes = b"",
) -> Traced:
    """Find what holds the rest of `positions`, which were read under `path` and are not open any more, and what came after them.

    `known`: files that are read as it is. `own`: paths that are read under their own name, whatever rotation made of them: of these only
    what continues a position is taken. `newer_than_unix_nano`: rotated files that were changed later, and later than those that hold
    the positions, are read from their beginning; None: there can be none. `ended`: where files of the path ended that were read
    before; of such a one only what came since is taken. `unlike`: what the path begins with now; a copy of that is
    read where it lies."""
    beside = candidates(path)
    found: list[Found] = []
    lost: list[Position] = []
    taken: set[FileId] = set(known)
    newest_unix_nano = newer_than_unix_nano or 0
    for position in positions:
        hit = _holder(beside, position, taken)
        if hit is None:
            lost.append(position)
            newest_unix_nano = max(newest_unix_nano, position.modified_unix_nano)
        else:
            candidate, opened, at = hit
            taken.add(candidate.file)
            found.append(Found(candidate.path, opened, at))
            newest_unix_nano = max(newest_unix_nano, candidate.modified_unix_nano)
    for candidate in beside if newer_than_unix_nano is not None else ():
        if candidate.modified_unix_nano <= newest_unix_nano or candidate.file in taken or candidate.path in own:
            continue
        if not _has_packed_twin(candidate, beside) and (newer := _newer(candidate, ended, unlike)) is not None:
            found.append(newer)
            taken.add(candidate.file)
    return Traced(found, lost)


def _newer(candidate: Candidate, ended: Sequence[Position], unlike: bytes) -> Found | None:
    """Open a file that is newer than what was read; None where nothing of it is to be read."""
    try:
        opened = open_file(candidate.path)
    except OSError:
        return None
    try:
        head = opened.read(len(unlike), 0) if unlike else b""
        end = next((one for one in ended if _has_ended(candidate, opened, one)), None)
        is_known = bool(head) and (unlike.startswith(head) or head.startswith(unlike))
        if not is_known and (end is None or opened.read(1, end.offset)):
            return Found(candidate.path, opened, end)
    except OSError:
        pass
    opened.close()
    return None


def _has_ended(candidate: Candidate, opened: PlainFile | PackedFile, end: Position) -> bool:
    """Whether it is the file, or that file packed, whose end was reached. Two short files may say the same: so the time must be the same
    too (packing may cut it to the second), or the file have grown."""
    is_same = candidate.modified_unix_nano // 10**9 == end.modified_unix_nano // 10**9
    is_grown = candidate.file == end.file and not opened.packed and opened.stat().st_size > end.offset
    return (is_same or is_grown) and holds(opened, end)


def _has_packed_twin(candidate: Candidate, beside: Sequence[Candidate]) -> bool:
    """Whether it is the packed form, perhaps not whole yet, of another one that is still there."""
    return candidate.path.endswith(".gz") and any(one.path == candidate.path.removesuffix(".gz") for one in beside)


def _holder(
    beside: Sequence[Candidate], position: Position, taken: Collection[FileId]
) -> tuple[Candidate, PlainFile | PackedFile, Position] | None:
    """Return who holds a position, open, and where to go on in it: at the end of a copy that was made of less than had been read."""
    by_inode = [one for one in beside if one.file == position.file]
    if position.head.size:  # by content; plain ones first: the packed one beside it may not be whole yet
        by_inode += sorted((one for one in beside if one.file != position.file), key=lambda one: one.path.endswith(".gz"))
    for candidate in by_inode:
        if candidate.file in taken:
            continue
        try:
            opened = open_file(candidate.path)
        except OSError:
            continue
        if opened.file == candidate.file and holds(opened, position):
            return candidate, opened, position
        size_bytes = prefix_bytes(opened, position)
        if size_bytes and candidate.file != position.file:
            return candidate, opened, replace(position, offset=size_bytes, parts=0)
        opened.close()
    return None
