"""Keeps records as JSON lines in files under the data directory: what a role does when no destination is set.

    records/logs-000001.jsonl.gz  records/logs-000002.jsonl  records/traces-000001.jsonl  …

A record is acknowledged when its line is in the file and on stable storage. A line is never split over two files. After a restart the last
file is continued, without the torn line that a power cut may have left (its record was not acknowledged, and comes again). Like the buffer,
what is made here is its owner's alone; a directory that was there keeps its permissions.
Not here: how a record is written as JSON (the core, `Batch.to_json_lines`).
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

from emp_pipe.component import Context, ExporterConfig, Parcel, Sent
from emp_pipe.delivery.blocking import OneWriteAtATime
from emp_pipe.directory import WILL_PASS, make_private, open_private, sync_directory
from emp_pipe.errors import ConfigError, DeliveryError, ErrorKind
from emp_pipe.logs import get_logger

_NAME = re.compile(r"(logs|traces|metrics)-(\d{6,})\.jsonl(\.gz)?")
_TAIL_BYTES = 1 << 16


class FileConfig(ExporterConfig):
    """Where the files are, how large they get, how many are kept."""

    directory: Path | None = Field(None, description="Default: `records` under the data directory. Made 0700, its files 0600.")
    max_file_bytes: Annotated[int, Field(ge=1024)] = Field(64 << 20, description="A new file is begun before one gets larger.")
    max_files: Annotated[int, Field(ge=1)] = Field(16, description="How many files are kept of each signal; the oldest go first.")
    gzip_old: bool = Field(True, description="Compress files that are full.")


class _Series:
    """The files of one signal. All its methods block; one thread at a time."""

    def __init__(self, directory: Path, signal: str, config: FileConfig) -> None:
        self._directory = directory
        self._signal = signal
        self._config = config
        self._descriptor = -1
        self._path = directory
        self._number = 0
        self._size_bytes = 0
        self.deleted = 0

    def append(self, lines: bytes) -> None:
        """Write lines and sync them. After an error nothing of the last file counts: the caller writes all of it again."""
        view, start = memoryview(lines), 0
        while start < len(lines):
            if self._descriptor < 0:
                self._continue()
            end = self._fitting(lines, start)
            if end > start:
                self._write(view[start:end])
                start = end
            if start < len(lines):
                self._rotate()

    def _fitting(self, lines: bytes, start: int) -> int:
        """Return where the lines end that still fit into the file; an empty file takes one line of any length."""
        room_bytes = max(self._config.max_file_bytes - self._size_bytes, 0)
        if len(lines) - start <= room_bytes:
            return len(lines)
        end = lines.rfind(b"\n", start, start + room_bytes) + 1
        if end <= start and not self._size_bytes:
            end = lines.find(b"\n", start) + 1 or len(lines)
        return max(end, start)

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _write(self, lines: memoryview) -> None:
        try:
            written = 0
            while written < len(lines):
                written += os.write(self._descriptor, lines[written:])
            os.fsync(self._descriptor)
        except OSError:
            # What a failed write or sync left is not to be trusted, nor is a second sync of it: cut it off and go on in a new file.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size_bytes)
                if not self._size_bytes:  # or a disk that stays full would fill the directory with empty files, and old ones go for them
                    self._path.unlink()
                    self._number -= 1
            self.close()
            self._number += 1
            raise
        self._size_bytes += len(lines)

    def _continue(self) -> None:
        """Open the file that is written to: after a start the newest one, unless it is full and compressed."""
        if not self._number:
            files = self._files()
            newest = max(files, default=0)
            self._number = newest if newest and files[newest].suffix != ".gz" else newest + 1
        self._path = path = self._directory / f"{self._signal}-{self._number:06}.jsonl"
        make_private(self._directory)
        descriptor = open_private(path, os.O_APPEND)
        try:
            self._size_bytes = _whole_lines(descriptor)
            os.ftruncate(descriptor, self._size_bytes)
            sync_directory(self._directory)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _rotate(self) -> None:
        self.close()
        full = self._directory / f"{self._signal}-{self._number:06}.jsonl"
        if self._config.gzip_old:
            _compress(full)
        self._number += 1
        files = self._files()
        for number in sorted(files)[: max(len(files) + 1 - self._config.max_files, 0)]:
            files[number].unlink(missing_ok=True)
            self.deleted += 1

    def _files(self) -> dict[int, Path]:
        """Return the files of the signal by number; where a crash left both forms of one, the uncompressed."""
        files: dict[int, Path] = {}
        if not self._directory.is_dir():
            return files
        for path in self._directory.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is not None and match[1] == self._signal and (path.suffix != ".gz" or int(match[2]) not in files):
                files[int(match[2])] = path
        return files


def _whole_lines(descriptor: int) -> int:
    """Return the length of a file up to its last complete line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(end - _TAIL_BYTES, 0)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _compress(path: Path) -> None:
    """Replace a file by its compressed form; the file stays until the other is on stable storage."""
    unfinished = path.with_name(f"{path.name}.gz.tmp")
    try:
        with path.open("rb") as source, os.fdopen(open_private(unfinished, os.O_TRUNC), "wb") as target:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=target, mtime=0) as packed:
                shutil.copyfileobj(source, packed, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        unfinished.rename(path.with_name(f"{path.name}.gz"))
        sync_directory(path.parent)
        path.unlink()
    except OSError as error:
        get_logger("file").warning("%s stays uncompressed: %s", path, error)
        unfinished.unlink(missing_ok=True)


class FileExporter:
    """Appends parcels to the files of their signal, in the order of the log."""

    merges = True
    ordered = True
    codec = "none"
    limits = None

    def __init__(self, id: str, config: FileConfig, context: Context) -> None:
        self.id = id
        self.config = config
        name = id.partition("/")[2]
        self.directory = config.directory or (context.data_dir / "records" / name if name else context.data_dir / "records")
        self._clock = context.clock
        self._writes = OneWriteAtATime()
        self._series = {signal: _Series(self.directory, signal, config) for signal in ("logs", "traces", "metrics")}
        self._deleted = context.metrics.counter(
            "file_deleted", unit="files", help="Files of records deleted because there were more than max_files.", labels=("component",)
        ).labels(id)
        self._deleted_before = 0

    async def open(self) -> None:
        """Make the directory. Raises ConfigError where that cannot be; a disk that is full or read-only now is waited for, as in `send`."""
        try:
            make_private(self.directory)
            for unfinished in self.directory.glob("*.jsonl.gz.tmp"):
                unfinished.unlink()
        except OSError as error:
            place, detail = f"{self.id}: directory", f"{self.directory}: {error.strerror}"
            if error.errno in WILL_PASS:
                get_logger(self.id).error("%s; records stay in the buffer until it can be written", detail)
                return
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=detail) from error
        get_logger(self.id).info("records are kept in %s", self.directory)

    async def send(self, parcel: Parcel) -> Sent:
        """Return when the parcel's lines are on stable storage."""
        block = parcel.block
        series = self._series[block.signal]
        try:
            await self._writes.write(block.block_id, lambda: series.append(block.decode().to_json_lines()))
        except OSError as error:
            detail = f"cannot write to {self.directory} ({error.strerror or error})"
            advice = "free space or mend the disk; the records stay in the buffer"
            raise DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail=detail, advice=advice) from error
        deleted = sum(one.deleted for one in self._series.values())
        self._deleted.inc(deleted - self._deleted_before)
        self._deleted_before = deleted
        return Sent()

    async def close(self, deadline_monotonic_s: float) -> None:
        await self._writes.wait(deadline_monotonic_s - self._clock.monotonic_s())
        for series in self._series.values():
            series.close()


CONFIG = FileConfig
COMPONENT = FileExporter
