"""The kernel's log, read from `/dev/kmsg`: each record once, across restarts, with what the ring overwrote counted.

A record has a sequence number; the last one that is durable is the checkpoint, with the boot that it belongs to. A gap in the numbers is
what the kernel overwrote before it was read. NVIDIA's Xid messages become error events (`xid.py`). Not here: the same messages by way of
the journal (`journald.py`) or of files. Source: the kernel's Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, PositiveFloat

from emp_pipe import xid
from emp_pipe.component import ComponentConfig, Context
from emp_pipe.own_reading import ReadingReceiver

_LEVELS = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
_FACILITIES = ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp")
_READ_BYTES = 16 << 10
"""The kernel refuses a read into less than a record (8 kB at most)."""
_MOST_RECORDS = 512
_MOST_REST_BYTES = 64 << 10
_CHECKPOINT = "sequence"
_HEAD = re.compile(rb"(\d{1,10}),(\d{1,20}),(\d{1,19}),[^;\n]{0,256};(.*)", re.DOTALL)
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class KmsgConfig(ComponentConfig):
    """Settings of the receiver of the kernel's log."""

    path: Path = Field(Path("/dev/kmsg"), description="The device.")
    boot_id_path: Path = Field(Path("/proc/sys/kernel/random/boot_id"), description="Where the kernel says which boot this is.")
    from_: Literal["beginning", "end"] = Field(
        "beginning", alias="from", description="Where to begin without a checkpoint of this boot: at the oldest record, or with new ones."
    )
    retry_s: PositiveFloat = Field(30.0, description="How long to wait before a device that cannot be read is tried again.")


class KernelRecord(NamedTuple):
    """One record of the ring."""

    priority: int
    sequence: int
    since_boot_us: int
    message: str
    fields: dict[str, str]


def read_record(data: bytes) -> KernelRecord | None:
    """Return a record with its continuation lines; None where it is none."""
    first, *more = data.rstrip(b"\n").split(b"\n")
    found = _HEAD.fullmatch(first)
    if found is None:
        return None
    fields = {}
    for line in more[:16]:
        key, equals, value = line.strip().partition(b"=")
        if equals:
            fields[_text(key[:64])] = _text(value[:1024])
    return KernelRecord(int(found[1]), int(found[2]), int(found[3]), _text(found[4]), fields)


def _text(escaped: bytes) -> str:
    """The kernel writes bytes that are not printable ASCII as \\xNN, UTF-8 included."""
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), escaped).decode("utf-8", "replace")


class KmsgReceiver(ReadingReceiver):
    """See the module's head."""

    def __init__(self, id: str, config: KmsgConfig, context: Context) -> None:
        super().__init__(id, config, context)
        self.config = config
        self._overwritten = context.metrics.counter(
            "kmsg_overwritten", unit="records", help="Kernel records that the ring overwrote before they were read.", labels=["component"]
        ).labels(id)
        self._rest = b""
        self._last: int | None = None

    async def read(self) -> None:
        boot = await asyncio.to_thread(self._boot_id)
        self._last = await self._after(boot)
        while True:
            try:
                descriptor = await asyncio.to_thread(os.open, self.config.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                self._met(error)
                await self.context.clock.sleep(self.config.retry_s)
                continue
            try:
                await self._follow(descriptor, boot)
            except OSError as error:
                self._met(error)
            finally:
                os.close(descriptor)
            await self.context.clock.sleep(self.config.retry_s)

    def _boot_id(self) -> str:
        try:
            return self.config.boot_id_path.read_text().strip()[:64]
        except (OSError, ValueError):
            return ""

    async def _after(self, boot: str) -> int | None:
        """Return the sequence number behind which to go on; None: begin as the settings say."""
        stored = await self.checkpoint(_CHECKPOINT)
        try:
            known = json.loads(stored or b"{}")
            return int(known["sequence"]) if known.get("boot") == boot else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _met(self, error: OSError) -> None:
        advice = ""
        if error.errno in (errno.EPERM, errno.EACCES):
            advice = "; give this process CAP_SYSLOG, or set kernel.dmesg_restrict=0"
        reason = {errno.EPERM: "permission", errno.EACCES: "permission", errno.ENOENT: "missing"}.get(error.errno or 0, "read")
        self.troubles.met(
            reason, "%s cannot be read (%s)%s; it is tried again every %g s", self.config.path, error.strerror, advice, self.config.retry_s
        )

    async def _follow(self, descriptor: int, boot: str) -> None:
        if self._last is None and self.config.from_ == "end":
            os.lseek(descriptor, 0, os.SEEK_END)
        self._rest = b""
        while True:
            chunks, ended = self._read_some(descriptor)
            if chunks:
                self.troubles.over("%s can be read again", self.config.path)
                await self._take(chunks, boot)
            elif ended:
                raise OSError(errno.EIO, "it has ended")
            else:
                await self._readable(descriptor)

    def _read_some(self, descriptor: int) -> tuple[list[bytes], bool]:
        """Return what can be read without waiting, a record at a time, and whether the device has ended."""
        chunks: list[bytes] = []
        for _ in range(_MOST_RECORDS):
            try:
                chunk = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EPIPE:  # EPIPE: records were overwritten; the next read goes on behind them
                    if chunks:
                        break
                    raise
                continue
            if not chunk:
                return chunks, True
            chunks.append(chunk)
        return chunks, False

    async def _readable(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(descriptor, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(descriptor)

    def _whole(self, chunks: list[bytes]) -> list[bytes]:
        """Return whole records. The device gives one at a time; a pipe in its place may give parts."""
        lines = (self._rest + b"".join(chunks)).split(b"\n")
        self._rest = lines.pop()[:_MOST_REST_BYTES]
        records: list[bytes] = []
        for line in lines:
            if line.startswith(b" ") and records:
                records[-1] += b"\n" + line
            elif line:
                records.append(line)
        return records

    async def _take(self, chunks: list[bytes], boot: str) -> None:
        clock = self.context.clock
        booted_unix_nano = clock.unix_nano() - int(clock.monotonic_s() * 1e9)
        made: list[dict[str, Any]] = []
        dead = []
        for data in self._whole(chunks):
            record = read_record(data)
            if record is None:
                dead.append(self.dead_letter(data, "no record of the kernel's log"))
                continue
            if self._last is not None:
                if record.sequence <= self._last:
                    continue
                if missing := record.sequence - self._last - 1:
                    self._overwritten.inc(missing)
                    self.limited.warning("overwritten", "the kernel overwrote %s records before they were read", f"{missing:,}")
            self._last = record.sequence
            made.append(_made(record, booted_unix_nano))
        if not made and not dead:
            return
        checkpoints = {_CHECKPOINT: json.dumps({"boot": boot, "sequence": self._last}).encode()} if self._last is not None else {}
        await self.hand_over(self.batch_of(made, tag="kernel"), checkpoints, dead=dead)


def _made(record: KernelRecord, booted_unix_nano: int) -> dict[str, Any]:
    facility = record.priority >> 3
    made: dict[str, Any] = {
        "timestamp": booted_unix_nano + record.since_boot_us * 1000,
        "level": _LEVELS[record.priority & 7],
        "message": record.message,
        "service.name": "kernel",
        "log.stream": "kernel",
        "syslog.facility": _FACILITIES[facility] if facility < len(_FACILITIES) else str(facility),
        "kmsg.sequence": record.sequence,
    }
    made |= {f"kmsg.{key.lower()}": value for key, value in record.fields.items()}
    if facility == 0:  # a program that writes into the ring has another
        made |= xid.event_of(record.message) or {}
    return made


CONFIG = KmsgConfig
COMPONENT = KmsgReceiver
