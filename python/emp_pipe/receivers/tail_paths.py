"""What became of the paths of a tail: files that come, are renamed, replaced, truncated, copied, deleted, and how far each is read.

A path's files are kept under its name: the one that it leads to (`live`), and those that it led to and that are not read to their end
(`gone`). Nothing here waits for anybody but the disk. Not here: whose turn it is to be read (`tail_reader.py`), the names that rotation
gives (`tail_rotation.py`), a file's own state (`tail_file.py`).
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from emp_pipe.receivers.tail_disk import NoFile, PackedFile, PlainFile, begins_as, holds, last_line_start, open_file
from emp_pipe.receivers.tail_file import MakeParser, TailedFile
from emp_pipe.receivers.tail_position import FileId, Position, encode
from emp_pipe.receivers.tail_report import Report
from emp_pipe.receivers.tail_rotation import Found, Traced, candidates, is_rotated_name, trace
from emp_pipe.receivers.tail_scan import Patterns
from emp_pipe.receivers.tail_settings import TailConfig
from emp_pipe.receivers.tail_watch import Watcher

LEAST_BETWEEN_LOOKS_S = 0.1
_LOOK_AGAIN_S = 1.0
_MOST_ENDED = 32
"""So many files of a path that were read to their end are remembered: no fewer than rotation usually keeps."""
_MOST_PATHS_ENDED = 4096
_COPY_S = 10.0
"""A new file that begins as its neighbour is, by its name, a copy in the making: so long it is waited for what becomes of the original."""


class Paths:
    """See the module's head. `live` by path, `gone` by the path that led there, `ended`: where files ended that were read to their end;
    `dirty`: paths of which the log is to be told anew."""

    def __init__(self, config: TailConfig, patterns: Patterns, watcher: Watcher, report: Report, make_parser: MakeParser) -> None:
        self._config = config
        self._watcher = watcher
        self._report = report
        self._make_parser = make_parser
        self._patterns = patterns
        self.live: dict[str, TailedFile] = {}
        self.gone: dict[str, list[TailedFile]] = {}
        self.ended: dict[str, list[Position]] = {}
        self.newly_ended: set[str] = set()
        self._by_file: dict[FileId, TailedFile] = {}
        self.open_files: OrderedDict[TailedFile, None] = OrderedDict()
        self.ready: deque[TailedFile] = deque()
        self.unflushed: set[TailedFile] = set()
        self._copies: dict[str, float] = {}
        self.dirty: dict[str, None] = {}
        self._found: dict[str, os.stat_result] | None = None
        self._stems: dict[tuple[str, str], list[TailedFile]] | None = None
        self.is_missing_some = False
        self.looked_at_s = float("-inf")
        self.next_look_s = 0.0
        self.now_s = 0.0

    # beginning and end

    def start(
        self, stored: Mapping[str, Sequence[Position]], now_s: float, *, is_first: bool, ended: Mapping[str, Sequence[Position]]
    ) -> None:
        """Go on where the last run stopped; `is_first`: there was none."""
        self.now_s = now_s
        self.ended = {key: list(positions) for key, positions in ended.items()}
        self._watch()
        found = self._files()
        if self._config.from_ != "beginning":
            for key, positions in stored.items():
                self._resume(key, positions, found)
        for path, known in found.items():
            if path not in self.live and FileId.of(known) not in self._by_file:
                self._begin(path, at_end=is_first and self._config.from_ == "end")

    def begin_round(self, now_s: float) -> None:
        """What was seen before may not be so any more."""
        self.now_s = now_s
        self._found = None
        self._stems = None

    def _neighbours(self, directory: str, name: str) -> list[TailedFile]:
        """Return the files of a directory of whose name another one may be made by rotation."""
        if self._stems is None:
            self._stems = {}
            for file in self.live.values():
                self._stems.setdefault((file.directory, file.stem), []).append(file)
        found = [file for end in range(1, len(name)) for file in self._stems.get((directory, name[:end]), ())]
        return [file for file in found if is_rotated_name(name, os.path.basename(file.path)) and self.live.get(file.path) is file]

    def _files(self) -> dict[str, os.stat_result]:
        """Return the files that there are in this round."""
        if self._found is None:
            self._found = self._patterns.files(self._report.refused)
        return self._found

    def close(self) -> None:
        for file in list(self.open_files):
            file.close()
        self.open_files.clear()

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
        ended = self.ended.get(key)  # with no position: there was nothing at the path when the last run ended
        newer_than = (ended[-1].modified_unix_nano if ended else None) if not positions else None if at is not None else 0
        traced = self._trace(key, rest, known, found, newer_than=newer_than)
        self._take_up(key, traced.found, found)
        for position in traced.lost:
            if position.offset or position.head.size:
                self._report.lost(key)
        if opened is not None:
            self._follow(key, opened, at)
            if at is not None and at.offset == 0:
                self.live[key].began_unix_nano = at.modified_unix_nano
                self._truncated_unread(self.live[key], found[key])
        self.dirty[key] = None

    def _trace(
        self,
        key: str,
        positions: Sequence[Position],
        known: Collection[FileId],
        own: Collection[str],
        newer_than: int | None,
        **more: bytes,
    ) -> Traced:
        return trace(key, positions, known, own, newer_than_unix_nano=newer_than, ended=self.ended.get(key, ()), **more)

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
        file.quiet_since_s = self.now_s
        if not file.size_bytes:
            file.began_unix_nano = file.modified_unix_nano
        self.live[path] = file
        if self._stems is not None:
            self._stems.setdefault((file.directory, file.stem), []).append(file)
        self._by_file[file.file] = file
        self.dirty[path] = None
        self._opened_now(file)
        self._report.follows(path)
        self.queue(file)

    def _leave(self, file: TailedFile) -> None:
        """A file has no path of ours any more: read it to its end."""
        file.gone = True
        file.quiet_since_s = self.now_s
        self.gone.setdefault(file.key, []).append(file)
        self.dirty[file.key] = None
        if file.is_open:
            self._opened_now(file)
        self.queue(file)

    def look_around(self) -> None:
        """See which files there are now."""
        self._watch()
        found = self._files()
        self._report.seen(found.keys())
        appeared = [path for path in found if path not in self.live]
        for path in [path for path in self.live if path not in found]:
            self._left(path)
        for path, known in found.items():
            if path in self.live:
                self.look_at(self.live[path], known)
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
                self.dirty[other.key] = None
                self.gone[other.key].remove(other)
                other.move(path)
                other.gone = False
                self.live[path] = other
                self.dirty[path] = None
            elif other.path != path:
                self._report.refused(path, "same_file", other.path)
            return
        if self._is_copy_in_the_making(path):
            return
        self._begin(path)

    def _is_copy_in_the_making(self, path: str) -> bool:
        directory, name = os.path.split(path)
        for other in self._neighbours(directory, name):
            opened = self._try_open(path)
            if opened is None:
                return True
            try:
                size_bytes = opened.stat().st_size
                begins_alike = size_bytes == 0 or begins_as(opened, other.position())
            finally:
                opened.close()
            if begins_alike and self.now_s - self._copies.setdefault(path, self.now_s) < _COPY_S:
                self.next_look_s = min(self.next_look_s, self.now_s + _LOOK_AGAIN_S)
                return True
        self._copies.pop(path, None)
        return False

    def look_at(self, file: TailedFile, known: os.stat_result) -> None:
        """See what became of the file at a path."""
        file.polled_at_s = self.now_s
        if FileId.of(known) != file.file:
            path = file.path
            self._left(path)
            self._report.rotated(path)
            self._appeared(path, FileId.of(known))
            return
        read_to = max(file.read_at, file.let_go_at)
        if known.st_size < read_to:
            self.truncated(file)
            return
        if file.refused and known.st_size < file.size_bytes:
            file.refused = ""
        if file.read_at == 0 and file.began_unix_nano:
            self._truncated_unread(file, known)
        # One that has another time and the same length was perhaps rewritten: the next read tells.
        grown = known.st_size > read_to or (known.st_mtime_ns != file.modified_unix_nano and not file.refused)
        file.size_bytes, file.modified_unix_nano = known.st_size, known.st_mtime_ns
        if grown and not file.refused:
            self.queue(file)

    def truncated(self, file: TailedFile) -> None:
        """A file begins anew in its place. What of it had not been read is in a copy, if somebody made one."""
        self._report.truncated(file.path)
        position = file.position()
        own = self._files()
        traced = self._trace(file.key, [position], self._by_file.keys(), own, newer_than=None)
        elsewhere = any(one.position is not None and one.position.offset == position.offset for one in traced.found)
        if not elsewhere and file.let_go_at > file.read_at:
            self._report.lost(file.path)
        if not file.is_open and not self.opens(file):
            return
        file.start_over(0, rest_is_elsewhere=elsewhere)
        file.quiet_since_s = self.now_s
        self.dirty[file.key] = None
        newest = max((one.opened.stat().st_mtime_ns for one in traced.found), default=None)
        self._take_up(file.key, traced.found, own)
        if newest is not None:
            later = self._trace(file.key, [], self._by_file.keys(), own, newer_than=newest)
            self._take_up(file.key, later.found, {})
        self.queue(file)

    def _truncated_unread(self, file: TailedFile, known: os.stat_result) -> None:
        """A file of which nothing had been read since it was truncated may have been truncated again: take up what was copied then."""
        if known.st_mtime_ns <= file.began_unix_nano or not self.opens(file):
            return
        began, head = file.began_unix_nano, file.present_head()
        traced = self._trace(file.key, [], self._by_file.keys(), self._files(), newer_than=began, unlike=head)
        self._take_up(file.key, traced.found, {})
        file.began_unix_nano = known.st_mtime_ns

    def _between(self, file: TailedFile) -> None:
        """Take up what came after a file under its path and was rotated away before anybody looked."""
        if not file.is_open and not self.opens(file):
            return
        file.grown()
        own = self._files()
        traced = self._trace(file.key, [], self._by_file.keys(), own, newer_than=file.modified_unix_nano)
        live = own.get(file.key)
        self._take_up(file.key, [one for one in traced.found if live is None or one.opened.file != FileId.of(live)], {})

    # descriptors

    def _opened_now(self, file: TailedFile) -> None:
        self.open_files[file] = None
        self.open_files.move_to_end(file)
        if len(self.open_files) > self._config.max_open_files:
            one = next(one for one in self.open_files if one is not file)  # the one that was used longest ago
            del self.open_files[one]
            one.close()

    def opens(self, file: TailedFile) -> bool:
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

    def queue(self, file: TailedFile) -> None:
        if not file.queued:
            file.queued = True
            self.ready.append(file)

    def _watch(self) -> None:
        directories, complete = self._patterns.directories()
        self.is_missing_some = not complete
        self._watcher.watch(directories)
        if self._watcher.why_not:
            self._report.polls(self._watcher.why_not)

    def finished(self, file: TailedFile, *, lost: bool) -> None:
        """A file that was rotated away is read to its end."""
        if lost:
            self._report.lost(file.path)
        elif file.read_at:
            self._remember(file)
        self.open_files.pop(file, None)
        file.close()
        self.unflushed.discard(file)
        files = self.gone.get(file.key, [])
        if file in files:
            files.remove(file)
            if not files:
                del self.gone[file.key]
        if self._by_file.get(file.file) is file:
            del self._by_file[file.file]
        file.is_finished = True

    def _remember(self, file: TailedFile) -> None:
        """Keep where a file ended, while rotation keeps files of its path."""
        file.grown()
        ended = [one for one in self.ended.pop(file.key, ()) if one.file != file.file]
        if file.key in self.live or candidates(file.key):
            self.ended[file.key] = [*ended, replace(file.position(), head_bytes=b"")][-_MOST_ENDED:]
            self.newly_ended.add(file.key)
            if len(self.ended) > _MOST_PATHS_ENDED:
                del self.ended[next(iter(self.ended))]

    def record(self, key: str) -> bytes:
        """Return what the log is to keep of a path: how far its files are read."""
        files = [*self.gone.get(key, ())]
        if (live := self.live.get(key)) is not None:
            files.append(live)
        return encode([file.position() for file in files])
