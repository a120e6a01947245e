"""The journal, read through `journalctl`: every entry once, across restarts, rotation and vacuum, with its cursor as the checkpoint.

    journalctl -o json --follow --cursor=<last durable> ──▶ lines ──▶ records ──▶ log, with the cursor, in one commit

It is asked for the entry *at* the cursor, not for those after it: where that entry comes first nothing is missing, and where another
does, the journal was vacuumed meanwhile, which is said and counted. `--after-cursor` would leave that other entry out without a word
(docs/decisions/020-containers-and-journal.md). Not here: the process (`journald_process.py`), what an entry says (`journald_entries.py`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.component import ComponentConfig, Context
from emp_pipe.log.protocol import DeadLetter, DeadReason
from emp_pipe.own_reading import ReadingReceiver
from emp_pipe.receivers.journald_entries import FIELDS, Entry, is_same_entry, missing_between, read_entries
from emp_pipe.receivers.journald_process import Journalctl, LineCutter, Lines

_CHECKPOINT = "cursor"
_FIRST_PAUSE_S = 1.0
_ASKING_S = 20.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STREAMS = {"kernel": ("_TRANSPORT=kernel",), "auth": ("SYSLOG_FACILITY=4", "SYSLOG_FACILITY=10")}

Priority = Literal["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]


class JournaldConfig(ComponentConfig):
    """Settings of the journal's receiver."""

    directory: Path | None = Field(None, description="Read the journal files of this directory; without it those of this system.")
    files: tuple[Path, ...] = Field((), description="Read these journal files; `*` is expanded.")
    units: tuple[str, ...] = Field((), description="Only these units; `*` is expanded. Empty: all.")
    streams: tuple[Literal["kernel", "auth"], ...] = Field(
        (), description="Only these: what the kernel says, what is said of logins (facilities auth and authpriv). Empty: everything."
    )
    priority: Priority = Field("debug", description="The least urgent priority that is read.")
    from_: Literal["boot", "beginning", "end"] = Field(
        "boot", alias="from", description="Where to begin without a checkpoint: with this boot, with the oldest entry, with new entries."
    )
    journalctl: str = Field("journalctl", description="The program, by name or path.")
    max_entry_bytes: PositiveInt = Field(4 << 20, description="An entry that is longer as JSON becomes a dead letter (its beginning).")
    retry_s: PositiveFloat = Field(30.0, description="The longest wait before journalctl is started again.")


class JournaldReceiver(ReadingReceiver):
    """See the module's head."""

    def __init__(self, id: str, config: JournaldConfig, context: Context) -> None:
        super().__init__(id, config, context)
        self.config = config
        self._gone = context.metrics.counter(
            "journald_gone",
            unit="entries",
            help="Journal entries that rotation or vacuum may have removed before they were read, by their sequence numbers.",
            labels=["component"],
        ).labels(id)
        self._cursors_gone = context.metrics.counter(
            "journald_cursors_gone", unit="times", help="How often the entry of the checkpoint was no longer there.", labels=["component"]
        ).labels(id)
        self._cursor = ""
        self._same_selection = True
        self._judging = False
        self._got_some = False

    async def read(self) -> None:
        self._cursor, selection = _stored(await self.checkpoint(_CHECKPOINT))
        self._same_selection = selection == self._selection()
        pause_s = _FIRST_PAUSE_S
        while True:
            self._got_some = False
            try:
                await self._run()
            except OSError as error:
                what = "%s cannot be started (%s); the journal is not read; it is tried again every %g s"
                reason = "missing" if isinstance(error, FileNotFoundError) else "start"
                self.troubles.met(reason, what, self.config.journalctl, error.strerror or error, self.config.retry_s)
                pause_s = self.config.retry_s
            pause_s = _FIRST_PAUSE_S if self._got_some else pause_s
            await self.context.clock.sleep(pause_s)
            pause_s = min(pause_s * 2, self.config.retry_s)

    # how journalctl is asked

    def command(self, *more: str) -> list[str]:
        """Return the command that prints the entries of the settings, without where it begins."""
        config = self.config
        command = [config.journalctl, "--output=json", "--no-pager", "--all", f"--output-fields={','.join(FIELDS)}"]
        command += [f"--directory={config.directory}"] if config.directory else []
        command += [f"--file={file}" for file in config.files]
        command += [f"--unit={unit}" for unit in config.units]
        command += [f"--priority={config.priority}"] if config.priority != "debug" else []
        return [*command, *more]

    def _matches(self, boot_id: str = "") -> list[str]:
        """Return the matches of the streams, each within a boot where one is given: `+` stands for or."""
        boot = [f"_BOOT_ID={boot_id}"] if boot_id else []
        alternatives: list[list[str]] = [[*boot, match] for stream in self.config.streams for match in _STREAMS[stream]] or [boot]
        matches = alternatives[0]
        for alternative in alternatives[1:]:
            matches = [*matches, "+", *alternative]
        return matches

    async def _begin(self) -> list[str]:
        """Return where journalctl begins, and of what it prints."""
        if not self._cursor and self.config.from_ == "end":
            await self._begin_at_the_end()
        if self._cursor:
            return [f"--cursor={self._cursor}", *self._matches()]
        boot_id = await asyncio.to_thread(_boot_id) if self.config.from_ == "boot" else ""
        return self._matches(boot_id)

    async def _begin_at_the_end(self) -> None:
        """Make the newest entry the checkpoint, so that what comes from now on is read even where a restart comes first."""
        process = await Journalctl.start(self.command("--lines=1", "--boot=all", *self._matches()), self._journalctl_said)
        try:
            output = b""
            async with asyncio.timeout(_ASKING_S):
                while data := await process.read():
                    output = (output + data)[-self.config.max_entry_bytes :]
            last = output.strip().rpartition(b"\n")[2]
            found, _ = read_entries([last])
            self._cursor = found[0].cursor if found else ""
            unusable = not found and last.startswith(b"{")
        except TimeoutError:
            unusable = True
        finally:
            await process.end()
        if unusable:
            self.limited.warning("end", "the journal's newest entry is not to be found; everything that is there is read")
        if self._cursor:
            await self.hand_over(None, self._checkpoints())

    # its output

    async def _run(self) -> None:
        begin = await self._begin()
        process = await Journalctl.start(self.command("--follow", "--no-tail", "--boot=all", *begin), self._journalctl_said)
        self._judging = bool(self._cursor)
        cutter = LineCutter(self.config.max_entry_bytes)
        try:
            while data := await process.read():
                await self._take(cutter.feed(data))
            status, said = await process.ended()
        finally:
            await process.end()
        if self._judging and "cursor" in said.lower():
            self._lost(None, "the checkpoint cannot be used")
            self._cursor = ""
        self.troubles.met("ended", "journalctl ended (status %s%s); it is started again", status, f": {said}" if said else "")

    def _journalctl_said(self, line: str) -> None:
        self.limited.warning(line[:60], "journalctl says: %s", line)

    async def _take(self, lines: Lines) -> None:
        entries, bad = read_entries([line for line in lines.whole if not line.startswith(b"-- ")])  # that is said to people
        dead: list[DeadLetter] = [
            self.dead_letter(beginning, f"an entry of over {self.config.max_entry_bytes:,} bytes", reason=DeadReason.TOO_LARGE)
            for beginning in lines.too_long
        ]
        dead += [self.dead_letter(line, f"no entry of the journal ({why})") for line, why in bad]
        if entries:
            self._got_some = True
            self.troubles.over("the journal can be read again")
            entries = self._judged(entries)
        if dead:
            self.limited.warning("dead", "%d lines of journalctl are no entries, and were set aside", len(dead))
        if entries or dead:
            await self._hand_over(entries, dead)

    async def _hand_over(self, entries: Sequence[Entry], dead: Sequence[DeadLetter]) -> None:
        records: list[dict[str, Any]] = [entry.record for entry in entries]
        batch = self.batch_of(records, tag="journald")
        if entries:
            self._cursor = entries[-1].cursor
            self._same_selection = True
        await self.hand_over(batch, self._checkpoints() if self._cursor else {}, dead=dead)

    def _judged(self, entries: list[Entry]) -> list[Entry]:
        """Of the first entries after a start: leave out the one that we have; where another stands in its place, tell what is missing."""
        if not self._judging:
            return entries
        self._judging = False
        first = entries[0].cursor
        if is_same_entry(self._cursor, first):
            return entries[1:]
        missing = missing_between(self._cursor, first)
        if missing != 0 and self._same_selection:  # other settings, other entries: the one of the checkpoint may not be asked for
            self._lost(missing, "rotation or vacuum removed the entry of the checkpoint")
        return entries

    def _lost(self, missing: int | None, why: str) -> None:
        self._cursors_gone.inc()
        self._gone.inc(missing or 0)
        how_many = "an unknown number of" if missing is None else f"up to {missing:,}"
        self.logger.warning("%s: %s entries were gone before they were read; it goes on with the oldest that is there", why, how_many)

    def _selection(self) -> str:
        """What identifies the entries that are asked for."""
        return " ".join([*self.command()[1:], *self._matches()])

    def _checkpoints(self) -> dict[str, bytes]:
        return {_CHECKPOINT: json.dumps({"cursor": self._cursor, "selection": self._selection()}).encode()}


def _stored(checkpoint: bytes | None) -> tuple[str, str]:
    """Return the cursor and the selection of a checkpoint, empty where there is none that can be read."""
    try:
        known = json.loads(checkpoint or b"{}")
        cursor, selection = known.get("cursor", ""), known.get("selection", "")
    except (ValueError, AttributeError):
        return "", ""
    return (cursor, selection) if isinstance(cursor, str) and isinstance(selection, str) else ("", "")


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip().replace("-", "")
    except OSError:
        return ""


CONFIG = JournaldConfig
COMPONENT = JournaldReceiver
