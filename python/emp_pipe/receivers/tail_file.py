"""One file that is read: how far, by which parser, and whether it is still the file that it was.

A read begins some bytes before where the last one ended. When these are not what they were, the file was rewritten in place (truncated,
and grown past the old length before anybody looked): so that is seen at the very read, without another call. Of a file that was found and
not read yet, its first bytes tell.
Not here: which files there are (`tail_reader.py`), what becomes of a path (`tail_rotation.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from emp_pipe.receivers.tail_disk import PlainFile, Readable, head_of, no_text, open_file
from emp_pipe.receivers.tail_position import HEAD_BYTES, NO_PRINT, TAIL_BYTES, FileId, Position, Print

if TYPE_CHECKING:
    from emp_pipe._core import Batch, LineParser

MakeParser = Callable[[str, int], "LineParser"]
"""The parser of a file, by its path and in how many parts."""

READ_BYTES = 256 << 10
"""What one read asks for: it stays in the processor's cache until it is parsed."""


class Counts(NamedTuple):
    """What became of lines."""

    blank: int
    split: int
    nul_bytes: int
    unparsed: int
    redrawn: int


NO_COUNTS = Counts(0, 0, 0, 0, 0)


class Rewritten(Exception):
    """What lies before the place of reading is not what was read there."""


class NoText(Exception):
    """It is a file of something else; the argument says of what."""


class Buffer:
    """The memory that files are read into, one after another."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(READ_BYTES + TAIL_BYTES))

    def view(self, size_bytes: int) -> memoryview:
        return self._memory[:size_bytes]


class TailedFile:
    """See the module's head. `key` is the path under whose name its position is kept, `path` where it lies now."""

    def __init__(self, key: str, path: str, file: FileId, make_parser: MakeParser) -> None:
        self.move(path)
        self.key = key
        self.file = file
        self._make_parser = make_parser
        self._opened: Readable | None = None
        self._parser: LineParser | None = None
        self._counted = self.dropped_counts = NO_COUNTS
        self.read_at = 0
        self._offset = 0
        self._parts = 0
        self._head = b""
        self._head_print = NO_PRINT
        self._read_tail = b""
        self._offset_tail = b""
        self.modified_unix_nano = 0
        self.began_unix_nano = 0
        """When it was truncated, while nothing of it has been read since: another truncation shows by nothing but the time."""
        self.size_bytes = 0
        self.let_go_at = 0
        """So far it was read, though of its unfinished line nothing is kept."""
        self._left_over: list[Batch] = []
        self.refused = ""
        """Why it is not read, while it is what it is."""
        self.gone = False
        """Its path does not lead to it any more: what it still holds is read, then it is closed."""
        self.quiet_since_s = 0.0
        """When it last grew, or was seen for the first time."""
        self.flushed = True
        self.polled_at_s = 0.0
        self.queued = False
        self.is_finished = False

    def move(self, path: str) -> None:
        """It has another name now, under which its position is kept."""
        self.key = self.path = path
        self.directory, name = os.path.split(path)
        self.stem = name.rpartition(".")[0] or name
        self.is_link = os.path.islink(path)
        """Who writes to it does so elsewhere, unseen by who watches the directory."""

    # where it is

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def pending_bytes(self) -> int:
        return self.read_at - self._offset

    def position(self) -> Position:
        """Return where to go on when all rows that were taken are durable."""
        return Position(self.file, self._offset, self._parts, self._head_print, Print.of(self._offset_tail), self._when, self._head)

    @property
    def _when(self) -> int:
        return self.began_unix_nano if self.read_at == 0 and self.began_unix_nano else self.modified_unix_nano

    def present_head(self) -> bytes:
        """Return the first bytes as they are now."""
        return head_of(self._opened) if self._opened is not None else b""

    def begin(self, opened: Readable, position: Position | None = None) -> None:
        """Read `opened` from now on, from its beginning or from a position that it holds."""
        if self._opened is not None and self._opened is not opened:
            self._opened.close()
        self._opened = opened
        self.file = opened.file
        known = opened.stat()
        self.size_bytes, self.modified_unix_nano = known.st_size, known.st_mtime_ns
        self._head = head_of(opened)
        self._head_print = Print.of(self._head)
        self.read_at = self._offset = position.offset if position else 0
        self._parts = position.parts if position else 0
        start = max(self._offset - TAIL_BYTES, 0)
        self._read_tail = opened.read(self._offset - start, start) if self._offset else b""
        self._offset_tail = self._read_tail
        self.let_go_at = 0
        self._drop_parser()
        self.refused = ""

    def open(self) -> bool:
        """Open it again where it lay; False where something else lies there now. Raises OSError."""
        if self._opened is not None:
            return True
        opened = open_file(self.path)
        if opened.file != self.file:
            opened.close()
            return False
        self._opened = opened
        return True

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def grown(self) -> bool:
        """Return whether there is something to be read, by the open file itself."""
        if self._opened is None:
            return False
        known = self._opened.stat()
        self.size_bytes, self.modified_unix_nano = known.st_size, known.st_mtime_ns
        return self._opened.packed or known.st_size > self.read_at

    # reading

    def read(self, buffer: Buffer, most_bytes: int, now_unix_nano: int) -> int:
        """Read on, so many bytes at most; fewer were there where fewer are returned. Raises Rewritten, NoText, OSError."""
        opened = self._opened
        assert opened is not None
        got_bytes = 0
        while got_bytes < most_bytes:
            wanted = min(most_bytes - got_bytes, READ_BYTES)
            got = self._read_once(opened, buffer, wanted, now_unix_nano)
            got_bytes += got
            if got < wanted:
                break
        return got_bytes

    def _read_once(self, opened: Readable, buffer: Buffer, wanted: int, now_unix_nano: int) -> int:
        before = 0 if opened.packed else len(self._read_tail)
        is_first = self.read_at == 0
        if is_first and isinstance(opened, PlainFile):
            self.read_at = self._offset = opened.skip_hole(0)
        view = buffer.view(before + wanted)
        end = opened.read_into(view, self.read_at - before)
        if before and view[:before] != self._read_tail:
            raise Rewritten
        if is_first and self._head and not opened.packed and not head_of(opened).startswith(self._head):
            self.read_at = self._offset = 0  # asked after the read: what the file began with when it was found does not come back
            raise Rewritten
        got = end - before
        if got <= 0:
            return 0
        if is_first and (what := no_text(bytes(view[before : min(end, before + 4096)]))):
            raise NoText(what)
        parser = self._parser
        if parser is None:
            parser = self._parser = self._make_parser(self.key, self._parts)
            self._counted = NO_COUNTS
        parser.feed(view[before:end], now_unix_nano)
        self.read_at += got
        if len(self._head) < HEAD_BYTES:
            self._head = head_of(opened) if not opened.packed else self._head
            self._head_print = Print.of(self._head)
        self._read_tail = bytes(view[max(end - TAIL_BYTES, 0) : end])
        self._settle(parser, view, end)
        self.flushed = False
        return got

    def _settle(self, parser: LineParser, view: memoryview, end: int) -> None:
        """Move the offset to the end of what is in rows."""
        offset = self.read_at - parser.pending_bytes
        self._parts = parser.parts
        if offset == self._offset:
            return
        self._offset = offset
        at = end - (self.read_at - offset)
        self._offset_tail = bytes(view[max(at - TAIL_BYTES, 0) : at]) if at > 0 else b""

    def flush(self, now_unix_nano: int, *, at_end: bool) -> None:
        """End lines that wait for more of their kind; `at_end`: the last line too."""
        parser = self._parser
        self.flushed = True
        if parser is None:
            return
        parser.flush(now_unix_nano, at_end=at_end)
        offset = self.read_at - parser.pending_bytes
        if offset != self._offset:
            self._parts = parser.parts
            self._offset = offset
            behind = self.read_at - offset
            self._offset_tail = self._read_tail[: len(self._read_tail) - behind] if behind < len(self._read_tail) else b""

    def let_go(self) -> None:
        """Forget what was read of an unfinished line: it is read again when the file grows."""
        self.let_go_at = max(self.read_at, self.let_go_at)
        self.read_at, self._read_tail = self._offset, self._offset_tail
        self._drop_parser()

    def start_over(self, now_unix_nano: int, *, rest_is_elsewhere: bool) -> None:
        """Begin the file anew: it was truncated. What of its last line was read becomes a row, unless it is read elsewhere."""
        if not rest_is_elsewhere and self._parser is not None:
            self._parser.flush(now_unix_nano, at_end=True)
        opened = self._opened
        assert opened is not None
        self.begin(opened)
        self.began_unix_nano = self.modified_unix_nano

    def take(self) -> list[Batch]:
        """Return the rows since the last call."""
        batches, self._left_over = self._left_over, []
        if self._parser is not None and (batch := self._parser.take()) is not None:
            batches.append(batch)
        return batches

    def counts(self) -> Counts:
        """Return what became of lines since the last call."""
        dropped, self.dropped_counts = self.dropped_counts, NO_COUNTS
        parser = self._parser
        if parser is None:
            return dropped
        now = Counts(parser.blank, parser.split, parser.nul_bytes, parser.unparsed, parser.redrawn)
        last, self._counted = self._counted, now
        return Counts(*(count - before + more for count, before, more in zip(now, last, dropped, strict=True)))

    def _drop_parser(self) -> None:
        if self._parser is None:
            return
        if (batch := self._parser.take()) is not None:
            self._left_over.append(batch)
        self.dropped_counts = self.counts()
        self._parser = None
