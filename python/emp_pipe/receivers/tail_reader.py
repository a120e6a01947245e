"""All files of a tail: which there are, what became of them, and whose turn it is. One thread calls it; it waits for nobody but the disk.

    round:  look at what changed ─▶ files come, go, are truncated ─▶ their positions, as they are now, for the log      (a structural round)
            else: each file that has something gets its share ─▶ rows, each file's with the position after them

What is said of positions is true when the round before is durable: so a round is handed to the log when the one before it is.
A path's files are kept under its name: the one that it leads to, and those that it led to and that are not read to their end.
Not here: waiting, handing over (`tail.py`), rotation's names (`tail_rotation.py`), reading itself (`tail_file.py`).
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emp_pipe.component import Arrival
from emp_pipe.receivers.tail_disk import NoFile, PackedFile, PlainFile, holds, last_line_start, open_file
from emp_pipe.receivers.tail_file import Buffer, NoText, Rewritten, TailedFile
from emp_pipe.receivers.tail_position import FileId, Position, encode
from emp_pipe.receivers.tail_report import Report
from emp_pipe.receivers.tail_rotation import Found, candidates, is_rotated_name, trace
from emp_pipe.receivers.tail_scan import Patterns
from emp_pipe.receivers.tail_settings import TailConfig
from emp_pipe.receivers.tail_watch import Watcher

if TYPE_CHECKING:
    from emp_pipe._core import LineParser

ROUND_BYTES = 1 << 20
_LEAST_SHARE_BYTES = 32 << 10
_MOST_FILES_A_ROUND = 512
_LOOK_EVERY_S = 10.0
_LOOK_EVERY_MISSING_S = 0.9
_LEAST_BETWEEN_LOOKS_S = 0.1
_COPY_S = 10.0
"""A new file that begins as its neighbour is, by its name, a copy in the making: so long it is waited for what becomes of the original."""
_SLOWEST_POLL_S = 1.0


@dataclass(slots=True)
class Round:
    """What one round gave. `due_s`: when there is something to do again if nothing changes; `more`: at once."""

    arrivals: list[Arrival] = field(default_factory=list)
    more: bool = False
    due_s: float = 0.0


class Reader:
    """See the module's head."""

    def __init__(
        self, id: str, config: TailConfig, watcher: Watcher, report: Report, make_parser: Callable[[str, int], LineParser]
    ) -> None:
        self.id = id
        self._config = config
        self._watcher = watcher
        self._report = report
        self._make_parser = make_parser
        self._patterns = Patterns(config.include, config.exclude)
        self._buffer = Buffer()
        self.live: dict[str, TailedFile] = {}
        self.gone: dict[str, list[TailedFile]] = {}
        self._by_file: dict[FileId, TailedFile] = {}
        self._open: OrderedDict[TailedFile, None] = OrderedDict()
        self._ready: deque[TailedFile] = deque()
        self._unflushed: set[TailedFile] = set()
        self._copies: dict[str, float] = {}
        self._dirty: dict[str, None] = {}
        self._keys: frozenset[str] = frozenset()
        self._found: dict[str, os.stat_result] = {}
        self._found_at_s = float("-inf")
        self._missing = False
        self._looked_at_s = float("-inf")
        self._next_look_s = 0.0
        self._next_poll_s = 0.0
        self._now_s = 0.0

    # names of checkpoints

    @property
    def index_name(self) -> str:
        return f"{self.id}:files"

    def name(self, key: str) -> str:
        return f"{self.id}:file:{key}"

    # beginning and end

    def start(self, stored: Mapping[str, Sequence[Position]], now_s: float, *, is_first: bool) -> None:
        """Go on where the last run stopped; `is_first`: there was none."""
        self._now_s = now_s
        self._watch()
        found = self._files()
        if self._config.from_ != "beginning":
            for key, positions in stored.items():
                self._resume(key, positions, found)
        for path, known in found.items():
            if path not in self.live and FileId.of(known) not in self._by_file:
                self._begin(path, at_end=is_first and self._config.from_ == "end")

    def _files(self) -> dict[str, os.stat_result]:
        """Return the files that there are in this round."""
        if self._found_at_s != self._now_s:
            self._found, self._found_at_s = self._patterns.files(self._report.refused), self._now_s
        return self._found

    def close(self) -> None:
        for file in list(self._open):
            file.close()
        self._open.clear()
        self._watcher.close()

    def _resume(self, key: str, positions: Sequence[Position], found: Mapping[str, os.stat_result]) -> None:
        rest = list(positions)
        opened = self._try_open(key) if key in found else None
        at: Position | None = None
        if opened is not None:
            same = [one for one in reversed(rest) if one.file == opened.file] + [one for one in reversed(rest) if one.file != opened.file]
            at = next((one for one in same if holds(opened, one)), None)
            if at is not None:
                rest.remove(at)
        known = self._by_file.keys() | ({opened.file} if opened else set())
        traced = trace(key, rest, known, found.keys(), newer_than_unix_nano=0 if at is None and positions else None)
        self._take_up(key, traced.found, found)
        for position in traced.lost:
            if position.offset or position.head.size:
                self._report.lost(key)
        if opened is not None:
            self._follow(key, opened, at)
        self._dirty[key] = None

    def _take_up(self, key: str, found: Sequence[Found], own: Mapping[str, os.stat_result]) -> None:
        """Read what rotation left of a path to its end, each under the path's name, or under its own if it is one of ours."""
        for one in found:
            if one.path in own and one.path not in self.live:
                self._follow(one.path, one.opened, one.position)
                self._copies.pop(one.path, None)
                continue
            file = TailedFile(key, one.path, one.opened.file, self._make_parser)
            self._by_file[file.file] = file
            file.begin(one.opened, one.position)
            self._leave(file)

    # files come and go

    def _try_open(self, path: str) -> PlainFile | PackedFile | None:
        try:
            opened = open_file(path)
        except NoFile:
            self._report.refused(path, "not_regular")
        except FileNotFoundError:
            pass
        except PermissionError:
            self._report.refused(path, "permission")
        except OSError as error:
            self._report.refused(path, "unreadable", error.strerror or str(error))
        else:
            return opened
        return None

    def _begin(self, path: str, *, at_end: bool = False) -> None:
        opened = self._try_open(path)
        if opened is None:
            return
        position = None
        if at_end:
            size_bytes = opened.stat().st_size
            position = Position(opened.file, last_line_start(opened, size_bytes))
        self._follow(path, opened, position)

    def _follow(self, path: str, opened: PlainFile | PackedFile, position: Position | None) -> None:
        """Read an open file under the path that leads to it."""
        file = TailedFile(path, path, opened.file, self._make_parser)
        file.begin(opened, position)
        file.quiet_since_s = self._now_s
        self.live[path] = file
        self._by_file[file.file] = file
        self._dirty[path] = None
        self._opened_now(file)
        self._report.follows(path)
        self._queue(file)

    def _leave(self, file: TailedFile) -> None:
        """A file has no path of ours any more: read it to its end."""
        file.gone = True
        file.quiet_since_s = self._now_s
        self.gone.setdefault(file.key, []).append(file)
        self._dirty[file.key] = None
        if file.is_open:
            self._opened_now(file)
        self._queue(file)

    def _look_around(self) -> None:
        """See which files there are now."""
        self._watch()
        found = self._files()
        self._report.seen(found.keys())
        appeared = [path for path in found if path not in self.live]
        for path in [path for path in self.live if path not in found]:
            self._left(path)
        for path, known in found.items():
            if path in self.live:
                self._look_at(self.live[path], known)
        for path in appeared:
            if path not in self.live:
                self._appeared(path, FileId.of(found[path]))
        for path in [path for path in self._copies if path not in found]:
            del self._copies[path]

    def _left(self, path: str) -> None:
        file = self.live.pop(path)
        self._leave(file)
        self._between(file)

    def _appeared(self, path: str, file_id: FileId) -> None:
        other = self._by_file.get(file_id)
        if other is not None:
            if other.gone:  # it was renamed, to a name of ours
                self._dirty[other.key] = None
                self.gone[other.key].remove(other)
                other.move(path)
                other.gone = False
                self.live[path] = other
                self._dirty[path] = None
            elif other.path != path:
                self._report.refused(path, "same_file", other.path)
            return
        if self._is_copy_in_the_making(path):
            return
        self._begin(path)

    def _is_copy_in_the_making(self, path: str) -> bool:
        directory, name = os.path.split(path)
        for other in self.live.values():
            if other.directory != directory or not name.startswith(other.stem) or not is_rotated_name(name, os.path.basename(other.path)):
                continue
            head = other.position().head
            opened = self._try_open(path)
            if opened is None:
                return True
            try:
                size_bytes = opened.stat().st_size
                begins_alike = size_bytes == 0 or (head.size >= 16 and head.fits(opened.read(head.size, 0)))
            finally:
                opened.close()
            if begins_alike and self._now_s - self._copies.setdefault(path, self._now_s) < _COPY_S:
                self._next_look_s = min(self._next_look_s, self._now_s + _SLOWEST_POLL_S)
                return True
        self._copies.pop(path, None)
        return False

    def _look_at(self, file: TailedFile, known: os.stat_result) -> None:
        """See what became of the file at a path."""
        file.polled_at_s = self._now_s
        if FileId.of(known) != file.file:
            path = file.path
            self._left(path)
            self._report.rotated(path)
            self._appeared(path, FileId.of(known))
            return
        if known.st_size < file.read_at:
            self._truncated(file)
            return
        if file.refused and known.st_size < file.size_bytes:
            file.refused = ""
        grown = known.st_size > file.read_at
        file.size_bytes, file.modified_unix_nano = known.st_size, known.st_mtime_ns
        if grown and not file.refused:
            self._queue(file)

    def _truncated(self, file: TailedFile) -> None:
        """A file begins anew in its place. What of it had not been read is in a copy, if somebody made one."""
        self._report.truncated(file.path)
        position = file.position()
        own = self._files()
        traced = trace(file.key, [position], self._by_file.keys(), own.keys(), newer_than_unix_nano=None)
        elsewhere = any(one.position is not None and one.position.offset == position.offset for one in traced.found)
        if not file.is_open and not self._opens(file):
            return
        file.start_over(0, rest_is_elsewhere=elsewhere)
        file.quiet_since_s = self._now_s
        self._dirty[file.key] = None
        newest = max((one.opened.stat().st_mtime_ns for one in traced.found), default=None)
        self._take_up(file.key, traced.found, own)
        if newest is not None:
            later = trace(file.key, [], self._by_file.keys(), own.keys(), newer_than_unix_nano=newest)
            self._take_up(file.key, later.found, {})
        self._queue(file)

    def _between(self, file: TailedFile) -> None:
        """Take up what came after a file under its path and was rotated away before anybody looked."""
        if not file.is_open and not self._opens(file):
            return
        file.grown()
        own = self._files()
        traced = trace(file.key, [], self._by_file.keys(), own.keys(), newer_than_unix_nano=file.modified_unix_nano)
        live = own.get(file.key)
        self._take_up(file.key, [one for one in traced.found if live is None or one.opened.file != FileId.of(live)], {})

    # descriptors

    def _opened_now(self, file: TailedFile) -> None:
        self._open[file] = None
        self._open.move_to_end(file)
        if len(self._open) > self._config.max_open_files:
            idle = next((one for one in self._open if one is not file and not one.gone and not one.queued), None)
            one = idle or next(one for one in self._open if one is not file)
            del self._open[one]
            one.close()

    def _opens(self, file: TailedFile) -> bool:
        """Open a file again; under another name where it was renamed meanwhile. False: it is not there any more."""
        try:
            there = file.is_open or file.open()
        except OSError:
            there = False
        if not there:
            for candidate in candidates(file.key):
                if candidate.file == file.file:
                    file.path = candidate.path
                    try:
                        there = file.open()
                    except OSError:
                        continue
                    break
        if there:
            self._opened_now(file)
        return there

    # rounds

    def round(self, now_s: float, now_unix_nano: int) -> Round:
        """Do what is due."""
        self._now_s = now_s
        changes = self._watcher.look(now_s)
        if changes.names:
            self._next_look_s = min(self._next_look_s, max(now_s, self._looked_at_s + _LEAST_BETWEEN_LOOKS_S))
        for path in changes.written:
            if (file := self.live.get(path)) is not None:
                self._poll(file)
        if changes.woken:
            for file in list(self.live.values()):
                if file.directory in changes.woken:
                    self._poll(file)
        if now_s >= self._next_look_s:
            self._looked_at_s = now_s
            self._next_look_s = now_s + self._look_every_s
            self._look_around()
        if now_s >= self._next_poll_s:
            self._poll_due()
        if self._dirty:
            return Round(self._structure(), more=True)
        arrivals = self._read_ready(now_unix_nano)
        return Round(arrivals, more=bool(self._ready or self._dirty), due_s=min(self._next_look_s, self._next_poll_s))

    @property
    def _look_every_s(self) -> float:
        if self._watcher.descriptor is None or self._watcher.polled or self._missing:
            return min(_LOOK_EVERY_MISSING_S, max(self._config.poll_interval_s, 0.05))
        return _LOOK_EVERY_S

    def _watch(self) -> None:
        directories, complete = self._patterns.directories()
        self._missing = not complete
        self._watcher.watch(directories)
        if self._watcher.why_not:
            self._report.polls(self._watcher.why_not)

    def _poll(self, file: TailedFile) -> None:
        try:
            known = os.stat(file.path)
        except OSError:
            self._next_look_s = self._now_s
            return
        self._look_at(file, known)

    def _poll_due(self) -> None:
        """Look at files that nothing is said of."""
        now_s, interval_s = self._now_s, self._config.poll_interval_s
        polled = False
        for file in list(self.live.values()):
            if not (self._watcher.is_polled(file.directory) or file.is_link):
                continue
            polled = True
            quiet_s = now_s - file.quiet_since_s
            if now_s - file.polled_at_s >= min(max(interval_s, quiet_s / 16), max(_SLOWEST_POLL_S, interval_s)):
                self._poll(file)
        for files in self.gone.values():
            for file in files:
                polled = True
                if not file.queued:
                    self._queue(file)
        for file in list(self._unflushed):
            polled = True
            if now_s - file.quiet_since_s >= self._config.flush_s and not file.queued:
                self._queue(file)
        self._next_poll_s = now_s + interval_s if polled else float("inf")

    def _queue(self, file: TailedFile) -> None:
        if not file.queued:
            file.queued = True
            self._ready.append(file)

    def _structure(self) -> list[Arrival]:
        """Tell the log which files there are, all that changed at once, with the positions that are durable."""
        checkpoints = {self.name(key): self._record(key) for key in self._dirty}
        keys = frozenset(self.live) | frozenset(self.gone)
        if keys != self._keys:
            self._keys = keys
            checkpoints[self.index_name] = json.dumps(sorted(keys)).encode()
        arrivals = []
        for key in self._dirty:
            for file in [*self.gone.get(key, ()), *([self.live[key]] if key in self.live else [])]:
                arrivals += [Arrival(self.id, batch, received=batch.record_count) for batch in file.take()]
        self._dirty.clear()
        if not arrivals:
            arrivals.append(Arrival(self.id))
        arrivals[-1].checkpoints = checkpoints
        return arrivals

    def _record(self, key: str) -> bytes:
        files = [*self.gone.get(key, ())]
        if (live := self.live.get(key)) is not None:
            files.append(live)
        return encode([file.position() for file in files])

    def _read_ready(self, now_unix_nano: int) -> list[Arrival]:
        """Give each file that has something its share. Of the files of one path only one a round: one arrival tells of all of them."""
        arrivals: list[Arrival] = []
        turns = min(len(self._ready), _MOST_FILES_A_ROUND)
        if not turns:
            return arrivals
        share_bytes = max(ROUND_BYTES // turns, _LEAST_SHARE_BYTES)
        left_bytes = ROUND_BYTES
        seen: set[str] = set()
        for _ in range(turns):
            if left_bytes <= 0 or self._dirty:
                break
            file = self._ready.popleft()
            file.queued = False
            if file.key in seen:
                self._queue(file)
                continue
            seen.add(file.key)
            got_bytes = self._read(file, min(share_bytes, left_bytes), now_unix_nano)
            left_bytes -= got_bytes
            batches = file.take() if not self._dirty else []
            for index, batch in enumerate(batches):
                arrival = Arrival(self.id, batch, received=batch.record_count)
                if index == len(batches) - 1:
                    arrival.checkpoints = {self.name(file.key): self._record(file.key)}
                arrivals.append(arrival)
            self._report.counted(*file.counts())
            if file.is_finished:
                self._dirty[file.key] = None
        return arrivals

    def _read(self, file: TailedFile, most_bytes: int, now_unix_nano: int) -> int:
        if file.refused or not self._opens(file):
            if file.gone:
                self._finished(file, lost=not file.refused and file.size_bytes > file.read_at)
            self._next_look_s = min(self._next_look_s, self._now_s + _LEAST_BETWEEN_LOOKS_S) if not file.refused else self._next_look_s
            return 0
        try:
            got_bytes = file.read(self._buffer, most_bytes, now_unix_nano)
        except Rewritten:
            self._truncated(file)
            return 0
        except NoText as what:
            file.refused = str(what)
            self._report.refused(file.path, file.refused)
            return 0
        except OSError as error:
            self._report.refused(file.path, "unreadable", error.strerror or str(error))
            self._open.pop(file, None)
            file.close()
            got_bytes = 0
        if got_bytes:
            file.quiet_since_s = self._now_s
            self._report.read(got_bytes)
            self._wake(file)
        if got_bytes >= most_bytes:
            self._queue(file)
        elif self._now_s - file.quiet_since_s >= (self._config.rotate_wait_s if file.gone else self._config.flush_s):
            file.flush(now_unix_nano, at_end=file.gone)
            if file.gone:
                self._finished(file, lost=False)
        if file.pending_bytes and not file.flushed:
            self._unflushed.add(file)
            self._next_poll_s = min(self._next_poll_s, self._now_s + self._config.poll_interval_s)
        else:
            self._unflushed.discard(file)
        if file.gone:
            self._next_poll_s = min(self._next_poll_s, self._now_s + self._config.poll_interval_s)
        return got_bytes

    def _wake(self, file: TailedFile) -> None:
        """A file grows: from now on its directory is polled."""
        self._watcher.wake(file.directory, self._now_s)
        self._next_poll_s = min(self._next_poll_s, self._now_s + self._config.poll_interval_s)

    def _finished(self, file: TailedFile, *, lost: bool) -> None:
        """A file that was rotated away is read to its end."""
        if lost:
            self._report.lost(file.path)
        self._open.pop(file, None)
        file.close()
        self._unflushed.discard(file)
        files = self.gone.get(file.key, [])
        if file in files:
            files.remove(file)
            if not files:
                del self.gone[file.key]
        if self._by_file.get(file.file) is file:
            del self._by_file[file.file]
        file.is_finished = True
