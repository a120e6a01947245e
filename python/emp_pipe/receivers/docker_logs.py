"""A container's log as the daemon's API gives it: frames to lines, each with its time, and where to go on after a restart.

Without a terminal the answer is frames: a byte that says which stream, three zeros, a length of four bytes, then a time, a blank and (a
part of) a line. With one it is lines. The API has no position but `since`, a time: lines of the last time are given again, so of them it
is remembered how many there were. What has an earlier time than the last one (the clock was set back) is not given again at all: the
reason why files are read where they can be (docs/decisions/020-containers-and-journal.md). Not here: the request (`docker.py`).
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

_HEAD_BYTES = 8
_STREAMS = {0: "stdin", 1: "stdout", 2: "stderr"}
_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|[+-]\d\d:\d\d) ")
MOST_LINE_BYTES = 1 << 20
_PART_BYTES = 16 << 10
"""The daemon cuts what a container writes without a line's end at so many bytes."""
_MOST_FRAME_BYTES = 8 << 20


class NoFrames(ValueError):
    """The bytes are not what a log's answer is made of."""


class LogLine(NamedTuple):
    """A line: its stream, the time of its first part as the daemon wrote it, its text without the end, and whether it was cut."""

    stream: str
    time: bytes
    text: bytes
    cut: bool = False


class Place(NamedTuple):
    """Behind which line to go on: the last one's time, and how many lines had it."""

    time: str = ""
    lines: int = 0

    def encode(self) -> bytes:
        return json.dumps({"time": self.time, "lines": self.lines}).encode()

    @staticmethod
    def decode(value: bytes | None) -> Place:
        """Return the place of a checkpoint; the beginning where there is none that can be read."""
        try:
            known = json.loads(value or b"{}")
            time, lines = known.get("time", ""), known.get("lines", 0)
        except (ValueError, AttributeError):
            return Place()
        usable = isinstance(time, str) and type(lines) is int and lines >= 0 and _TIME.fullmatch(f"{time} ".encode())
        return Place(time, lines) if usable else Place()

    def behind(self, line: LogLine) -> Place:
        """Return the place behind a line."""
        time = line.time.decode("ascii", "replace")
        return Place(time, self.lines + 1) if time == self.time else Place(time, 1)


class LogCutter:
    """Cuts an answer into lines, in bounded memory; a line over the limit comes in parts, all but the last of them marked."""

    def __init__(self, *, has_terminal: bool, most_line_bytes: int = MOST_LINE_BYTES) -> None:
        self._has_terminal = has_terminal
        self._most_line_bytes = most_line_bytes
        self._buffer = bytearray()
        self._open: dict[str, tuple[bytes, bytearray]] = {}

    def feed(self, data: bytes) -> list[LogLine]:
        """Return the lines that `data` ends. Raises NoFrames."""
        self._buffer += data
        lines: list[LogLine] = []
        if self._has_terminal:
            *whole, rest = bytes(self._buffer).split(b"\n")
            self._buffer = bytearray(rest)
            for part in whole:
                self._part("stdout", part + b"\n", lines)
            if len(self._buffer) > self._most_line_bytes:
                self._part("stdout", bytes(self._buffer), lines)
                self._buffer.clear()
            return lines
        start = 0
        while len(self._buffer) - start >= _HEAD_BYTES:
            head = self._buffer[start : start + _HEAD_BYTES]
            size = int.from_bytes(head[4:], "big")
            if head[0] not in _STREAMS or any(head[1:4]) or size > _MOST_FRAME_BYTES:
                raise NoFrames("a frame's head is none")
            if len(self._buffer) - start - _HEAD_BYTES < size:
                break
            start += _HEAD_BYTES
            self._part(_STREAMS[head[0]], bytes(self._buffer[start : start + size]), lines)
            start += size
        del self._buffer[:start]
        return lines

    @property
    def pending(self) -> bool:
        """Whether a part of a line waits for the rest: a place behind other lines would leave it out."""
        return bool(self._open)

    def end(self) -> list[LogLine]:
        """Return what is left when the log has ended: last lines without their end."""
        lines = [LogLine(stream, time, bytes(text)) for stream, (time, text) in self._open.items() if text]
        self._open.clear()
        return lines

    def _part(self, stream: str, part: bytes, lines: list[LogLine]) -> None:
        found = _TIME.match(part)
        if found is None and stream not in self._open:
            raise NoFrames("a line has no time")
        text = part[found.end() :] if found else part
        first_time, whole = self._open.pop(stream, (b"", bytearray()))
        time = found[0][:-1] if found else first_time
        if whole and time != first_time:  # parts of a line have its time
            lines.append(LogLine(stream, first_time, bytes(whole)))
            whole = bytearray()
        whole += text
        # The driver `local` leaves the end of a line out where the line came in parts; only a full part has another one behind it.
        ended = text.endswith(b"\n") or (not self._has_terminal and len(text) != _PART_BYTES)
        if whole.endswith(b"\n"):
            del whole[-1:]
            if whole.endswith(b"\r"):
                del whole[-1:]
        while len(whole) > self._most_line_bytes:
            lines.append(LogLine(stream, time, bytes(whole[: self._most_line_bytes]), cut=True))
            del whole[: self._most_line_bytes]
        if ended:
            lines.append(LogLine(stream, time, bytes(whole)))
        else:
            self._open[stream] = (time, whole)


def fresh_lines(lines: list[LogLine], place: Place, again: Place) -> tuple[list[LogLine], Place, Place]:
    """Leave out lines that are given again after a restart: the first ones of the time at which it ended. Return the place behind."""
    fresh: list[LogLine] = []
    for line in lines:
        if again.lines and line.time.decode("ascii", "replace") == again.time:
            again = Place(again.time, again.lines - 1)
            continue
        again = Place()
        place = place.behind(line)
        fresh.append(line)
    return fresh, place, again


def as_file_line(line: LogLine) -> bytes:
    """Return a line as Docker's json-file driver would have written it, so that it is read as those are."""
    said: dict[str, object] = {"log": line.text.decode("utf-8", "replace") + "\n", "stream": line.stream}
    if line.cut:
        said["log.truncated"] = True
    return json.dumps({**said, "time": line.time.decode("ascii", "replace")}, ensure_ascii=False).encode() + b"\n"
