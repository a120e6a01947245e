"""Whose turn it is to be read, and what is told to the log. One thread calls it; it waits for nobody but the disk.

    round:  look at what changed ─▶ files come, go, are truncated ─▶ their positions, as they are now, for the log      (a structural round)
            else: each file that has something gets its share ─▶ rows, each file's with the position after them

What is said of positions is true when the round before is durable: so a round is handed to the log when the one before it is.
Not here: waiting and handing over (`tail.py`), what became of a path (`tail_paths.py`), reading itself (`tail_file.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emp_pipe.component import Arrival
from emp_pipe.receivers.tail_file import Buffer, MakeParser, NoText, Rewritten, TailedFile
from emp_pipe.receivers.tail_paths import LEAST_BETWEEN_LOOKS_S, Paths
from emp_pipe.receivers.tail_position import Position, encode
from emp_pipe.receivers.tail_report import Report
from emp_pipe.receivers.tail_scan import Patterns
from emp_pipe.receivers.tail_settings import TailConfig
from emp_pipe.receivers.tail_watch import Watcher

if TYPE_CHECKING:
    from emp_pipe._core import Batch

ROUND_BYTES = 1 << 20
_LEAST_SHARE_BYTES = 128 << 10
_MOST_FILES_A_ROUND = 512
_MOST_HELD_BYTES = 64 << 20
"""So much is kept of unfinished lines, of all files together; of those that have not grown for the longest it is read again then."""
_LOOK_EVERY_S = 10.0
_LOOK_EVERY_MISSING_S = 0.9
_SLOWEST_POLL_S = 1.0


@dataclass(slots=True)
class Round:
    """What one round gave. `due_s`: when there is something to do again if nothing changes; `more`: at once.

    The last arrival of a chain tells how far all of it brings a file: each goes to the log when the one before it is durable."""

    chains: list[list[Arrival]] = field(default_factory=list)
    more: bool = False
    due_s: float = 0.0


class Reader:
    """See the module's head."""

    def __init__(self, id: str, config: TailConfig, patterns: Patterns, watcher: Watcher, report: Report, make_parser: MakeParser) -> None:
        self.id = id
        self._config = config
        self._watcher = watcher
        self._report = report
        self._paths = Paths(config, patterns, watcher, report, make_parser)
        self._buffer = Buffer()
        self._keys: frozenset[str] = frozenset()
        self._next_poll_s = 0.0
        self._held: dict[TailedFile, int] = {}
        self.held_bytes = 0

    @property
    def index_name(self) -> str:
        """The name of the checkpoint that lists the paths."""
        return f"{self.id}:files"

    def name(self, key: str) -> str:
        """Return the name of the checkpoint of a path."""
        return f"{self.id}:file:{key}"

    @property
    def followed(self) -> int:
        return len(self._paths.live)

    @property
    def leaving(self) -> int:
        return sum([len(files) for files in list(self._paths.gone.values())])

    def ended_name(self, key: str) -> str:
        """Return the name of the checkpoint of a path's files that were read to their end."""
        return f"{self.id}:ended:{key}"

    def start(
        self,
        stored: Mapping[str, Sequence[Position]],
        now_s: float,
        *,
        is_first: bool,
        ended: Mapping[str, Sequence[Position]],
    ) -> None:
        """Go on where the last run stopped; `is_first`: there was none."""
        self._paths.start(stored, now_s, is_first=is_first, ended=ended)

    def close(self) -> None:
        self._paths.close()
        self._watcher.close()

    def round(self, now_s: float, now_unix_nano: int) -> Round:
        """Do what is due."""
        self._paths.begin_round(now_s)
        changes = self._watcher.look(now_s)
        if changes.names:
            self._paths.next_look_s = min(self._paths.next_look_s, max(now_s, self._paths.looked_at_s + LEAST_BETWEEN_LOOKS_S))
        for path in changes.written:
            if (file := self._paths.live.get(path)) is not None:
                self._poll(file)
        if changes.woken:
            for file in list(self._paths.live.values()):
                if file.directory in changes.woken:
                    self._poll(file)
        if now_s >= self._paths.next_look_s:
            self._paths.looked_at_s = now_s
            self._paths.next_look_s = now_s + self._look_every_s
            self._paths.look_around()
        if now_s >= self._next_poll_s:
            self._poll_due()
        if self._paths.dirty:
            return Round(self._structure(), more=True)
        chains = self._read_ready(now_unix_nano)
        return Round(chains, more=bool(self._paths.ready or self._paths.dirty), due_s=min(self._paths.next_look_s, self._next_poll_s))

    @property
    def _look_every_s(self) -> float:
        if self._watcher.descriptor is None or self._watcher.polled or self._paths.is_missing_some:
            return min(_LOOK_EVERY_MISSING_S, max(self._config.poll_interval_s, 0.05))
        return _LOOK_EVERY_S

    def _poll(self, file: TailedFile) -> None:
        try:
            known = os.stat(file.path)
        except OSError:
            self._paths.next_look_s = self._paths.now_s
            return
        self._paths.look_at(file, known)

    def _poll_due(self) -> None:
        """Look at files that nothing is said of."""
        now_s, interval_s = self._paths.now_s, self._config.poll_interval_s
        polled = False
        for file in list(self._paths.live.values()):
            if not (self._watcher.is_polled(file.directory) or file.is_link):
                continue
            polled = True
            quiet_s = now_s - file.quiet_since_s
            if now_s - file.polled_at_s >= min(max(interval_s, quiet_s / 16), max(_SLOWEST_POLL_S, interval_s)):
                self._poll(file)
        for files in self._paths.gone.values():
            for file in files:
                polled = True
                if not file.queued:
                    self._paths.queue(file)
        for file in list(self._paths.unflushed):
            polled = True
            if now_s - file.quiet_since_s >= self._config.flush_s and not file.queued:
                self._paths.queue(file)
        self._next_poll_s = now_s + interval_s if polled else float("inf")

    def _structure(self) -> list[list[Arrival]]:
        """Tell the log which files there are, all that changed at once, with the positions that are durable."""
        chains: list[list[Arrival]] = []
        without_rows: dict[str, bytes] = {}
        index: dict[str, bytes] = {}
        keys = frozenset(self._paths.live) | frozenset(self._paths.gone) | frozenset(self._paths.ended)
        if keys != self._keys:
            self._keys = keys
            index[self.index_name] = json.dumps(sorted(keys)).encode()
        for key in self._paths.dirty:
            checkpoints = self._checkpoints(key)
            files = [*self._paths.gone.get(key, ()), *([self._paths.live[key]] if key in self._paths.live else [])]
            if batches := [batch for file in files for batch in file.take()]:
                chains.append(self._chain(batches, index | checkpoints))
            else:
                without_rows |= checkpoints
        self._paths.dirty.clear()
        if without_rows or not chains:
            chains.append([Arrival(self.id, checkpoints=index | without_rows)])
        return chains

    def _chain(self, batches: Sequence[Batch], checkpoints: Mapping[str, bytes]) -> list[Arrival]:
        chain = [Arrival(self.id, batch, received=batch.record_count) for batch in batches]
        chain[-1].checkpoints = checkpoints
        return chain

    def _checkpoints(self, key: str) -> dict[str, bytes]:
        """Return what the log is to keep of a path; where its files ended only when another one did."""
        checkpoints = {self.name(key): self._paths.record(key)}
        if key in self._paths.newly_ended:
            self._paths.newly_ended.remove(key)
            checkpoints[self.ended_name(key)] = encode(self._paths.ended.get(key, ()))
        return checkpoints

    def _read_ready(self, now_unix_nano: int) -> list[list[Arrival]]:
        """Give each file that has something its share. Of the files of one path only one a round: one arrival tells of all of them."""
        chains: list[list[Arrival]] = []
        turns = min(len(self._paths.ready), _MOST_FILES_A_ROUND)
        if not turns:
            return chains
        share_bytes = max(ROUND_BYTES // turns, _LEAST_SHARE_BYTES)
        left_bytes = ROUND_BYTES
        seen: set[str] = set()
        for _ in range(turns):
            if left_bytes <= 0 or self._paths.dirty:
                break
            file = self._paths.ready.popleft()
            file.queued = False
            if file.key in seen:
                self._paths.queue(file)
                continue
            seen.add(file.key)
            got_bytes = self._read(file, min(share_bytes, left_bytes), now_unix_nano)
            left_bytes -= got_bytes
            self._hold(file)
            if not self._paths.dirty and (batches := file.take()):
                chains.append(self._chain(batches, self._checkpoints(file.key)))
            self._report.counted(file.counts())
            if file.is_finished:
                self._paths.dirty[file.key] = None
        return chains

    def _hold(self, file: TailedFile) -> None:
        """Keep the unfinished lines of all files within their limit."""
        before = self._held.pop(file, 0)
        now = 0 if file.is_finished else file.pending_bytes
        if now:
            self._held[file] = now  # the last one that grew is the last
        self.held_bytes += now - before
        if self.held_bytes <= _MOST_HELD_BYTES:
            return
        for one in [one for one in self._held if one is not file]:
            if one in self._paths.unflushed:
                one.quiet_since_s = float("-inf")  # it is ended at its next turn
                self._paths.queue(one)
            elif not (one.queued or one.gone):
                self.held_bytes -= self._held.pop(one)
                one.let_go()
            if self.held_bytes <= _MOST_HELD_BYTES // 2:
                return

    def _read(self, file: TailedFile, most_bytes: int, now_unix_nano: int) -> int:
        if file.refused or not self._paths.opens(file):
            if file.gone:
                self._paths.finished(file, lost=not file.refused and file.size_bytes > file.read_at)
            self._paths.next_look_s = (
                min(self._paths.next_look_s, self._paths.now_s + LEAST_BETWEEN_LOOKS_S) if not file.refused else self._paths.next_look_s
            )
            return 0
        try:
            got_bytes = file.read(self._buffer, most_bytes, now_unix_nano)
        except Rewritten:
            self._paths.truncated(file)
            return 0
        except NoText as what:
            file.refused = str(what)
            self._report.refused(file.path, file.refused)
            return 0
        except OSError as error:
            self._report.refused(file.path, "unreadable", error.strerror or str(error))
            self._paths.open_files.pop(file, None)
            file.close()
            got_bytes = 0
        if got_bytes:
            file.quiet_since_s = self._paths.now_s
            self._report.read(got_bytes)
            self._wake(file)
        if got_bytes >= most_bytes:
            self._paths.queue(file)
        elif self._paths.now_s - file.quiet_since_s >= (self._config.rotate_wait_s if file.gone else self._config.flush_s):
            file.flush(now_unix_nano, at_end=file.gone)
            if file.gone:
                self._paths.finished(file, lost=False)
        if file.pending_bytes and not file.flushed:
            self._paths.unflushed.add(file)
            self._next_poll_s = min(self._next_poll_s, self._paths.now_s + self._config.poll_interval_s)
        else:
            self._paths.unflushed.discard(file)
        if file.gone:
            self._next_poll_s = min(self._next_poll_s, self._paths.now_s + self._config.poll_interval_s)
        return got_bytes

    def _wake(self, file: TailedFile) -> None:
        """A file grows: from now on its directory is polled."""
        self._watcher.wake(file.directory, self._paths.now_s)
        self._next_poll_s = min(self._next_poll_s, self._paths.now_s + self._config.poll_interval_s)
