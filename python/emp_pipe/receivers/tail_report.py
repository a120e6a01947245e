"""What a tail tells people: a line the first time, a counter every time.

Called in the reader's thread. Not here: what it is about (`tail_reader.py`).
"""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import Counter

from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.receivers.tail_file import Counts
from emp_pipe.self_metrics import Metrics

_MOST_REMEMBERED = 10_000
_REFUSALS = {
    "utf16": "it is UTF-16 (or UTF-32), which is not read here; let its writer use UTF-8, or convert it with iconv",
    "binary": "it is no text; name it in `exclude`",
    "not_regular": "it is no regular file (a pipe, a socket, a device); name it in `exclude`",
    "permission": "there is no permission to read it; add the user of emp-pipe to its group, or name it in `exclude`",
    "unreadable": "it cannot be read",
    "same_file": "it is the same file as another one that is read",
}


class Report:
    """Counters and log lines of one tail."""

    def __init__(self, id: str, metrics: Metrics) -> None:
        self._log = get_logger(id)
        self._limited = RateLimitedLogger(self._log)
        self._said: dict[str, str] = {}
        self._polls = ""

        self._refused = metrics.counter(
            "tail_refused", unit="files", help="Files that were found and are not read, by reason.", labels=["component", "reason"]
        )
        self._id = id

        def counter(name: str, unit: str, help: str) -> Counter:
            return metrics.counter(name, unit=unit, help=help, labels=["component"]).labels(id)

        self._bytes = counter("tail_read", "bytes", "What was read of files.")
        self._rotated = counter("tail_rotated", "files", "Files that were rotated away under their path.")
        self._truncated = counter("tail_truncated", "files", "Files that began anew in their place.")
        self._lost = counter("tail_lost", "files", "Files that were gone before they were read to their end.")
        self._lines = (
            counter("tail_blank", "lines", "Lines without text, of which there is no record."),
            counter("tail_split", "records", "Records that are a part of a line that was too long."),
            counter("tail_nul", "bytes", "NUL bytes that were left out: holes, or no text."),
            counter("tail_unparsed", "lines", "Lines that are not of the format that is set; each is a record all the same."),
            counter("tail_redrawn", "states", "States of progress bars that were drawn over, of which there is no record."),
        )

    def refused(self, path: str, reason: str, detail: str = "") -> None:
        """A file is there and is not read."""
        if self._said.get(path) == reason:
            return
        if len(self._said) >= _MOST_REMEMBERED:
            self._said.clear()
        self._said[path] = reason
        self._refused.labels(self._id, reason if reason in _REFUSALS else "unreadable").inc()
        self._limited.warning(
            f"{reason} {path}", "%s: not read: %s%s", path, _REFUSALS.get(reason, reason), f" ({detail})" if detail else ""
        )

    def seen(self, paths: Collection[str]) -> None:
        """These are there; what was said of others is forgotten."""
        for path in [path for path in self._said if path not in paths and self._said[path] != "not_regular"]:
            del self._said[path]

    def follows(self, path: str) -> None:
        self._said.pop(path, None)
        self._log.debug("reads %s", path)

    def polls(self, why: str) -> None:
        if self._polls != why:
            self._polls = why
            self._log.info("files are looked at every now and then: %s", why)

    def rotated(self, path: str) -> None:
        self._rotated.inc()
        self._log.debug("%s was rotated", path)

    def truncated(self, path: str) -> None:
        self._truncated.inc()
        self._log.debug("%s begins anew", path)

    def lost(self, path: str) -> None:
        self._lost.inc()
        self._limited.warning(
            f"lost {path}", "%s: a file of this name was gone before it was read to its end; keep rotated files longer", path
        )

    def read(self, size_bytes: int) -> None:
        self._bytes.inc(size_bytes)

    def counted(self, counts: Counts) -> None:
        """What became of lines: each of the counters has its place in `Counts`."""
        for counter, count in zip(self._lines, counts, strict=True):
            if count:
                counter.inc(count)
