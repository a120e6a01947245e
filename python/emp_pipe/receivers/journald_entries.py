"""One entry of the journal, as `journalctl -o json` prints it, to one record. Pure: no process, no clock.

A field is text, an array of numbers (bytes that are no UTF-8), an array of values (several of one name), or null (too large to print).
Source: systemd.journal-fields(7), "Journal JSON Format". Not here: where the lines come from (`journald_process.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from emp_pipe import xid

_LEVELS = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
_FACILITIES = {
    **dict(enumerate(("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"))),
    **{16 + number: f"local{number}" for number in range(8)},
}
_AUTH = frozenset({"auth", "authpriv"})
ATTRIBUTES = {
    "_SYSTEMD_UNIT": "systemd.unit",
    "_SYSTEMD_USER_UNIT": "systemd.user_unit",
    "SYSLOG_IDENTIFIER": "syslog.identifier",
    "_TRANSPORT": "journald.transport",
    "_BOOT_ID": "journald.boot_id",
    "_COMM": "process.executable.name",
    "_EXE": "process.executable.path",
    "_UID": "user.id",
    "_HOSTNAME": "host.name",
    "CONTAINER_NAME": "container.name",
    "CONTAINER_ID_FULL": "container.id",
}
"""What is kept under another name. Command lines are not: they hold passwords."""
FIELDS = ("MESSAGE", "PRIORITY", "SYSLOG_FACILITY", "SYSLOG_PID", "_PID", "UNIT", *ATTRIBUTES)
"""What journalctl is asked for; position and time it prints anyway."""


class Entry(NamedTuple):
    """An entry of the journal: where it stands, and its record."""

    cursor: str
    record: dict[str, Any]


class Cursor(NamedTuple):
    """What a cursor says beside being one: `sequence` counts within `file_sequence`, which is the same over rotations."""

    file_sequence: str
    sequence: int


def read_entries(lines: Sequence[bytes]) -> tuple[list[Entry], list[tuple[bytes, str]]]:
    """Return what lines hold, in order; and those that are no entry, with why.

    They are read in one call. Where one of them is not JSON, or more than one value, each is read by itself."""
    try:
        objects = json.loads(b"[%b]" % b",\n".join(lines))  # a line's end within a text is no JSON: lines cannot run into another
        if len(objects) == len(lines):
            return [_entry(fields) for fields in objects], []
    except (ValueError, RecursionError):
        pass
    entries: list[Entry] = []
    bad: list[tuple[bytes, str]] = []
    for line in lines:
        try:
            entries.append(_entry(json.loads(line)))
        except (ValueError, RecursionError) as error:
            bad.append((line, str(error)))
    return entries, bad


def _entry(fields: Any) -> Entry:
    if not isinstance(fields, dict):
        raise ValueError("an entry is an object")
    cursor = fields.get("__CURSOR")
    if not isinstance(cursor, str) or not cursor:
        raise ValueError("an entry has a __CURSOR")
    return Entry(cursor, _record(fields))


def parse_cursor(cursor: str) -> Cursor | None:
    """Return what a cursor says of its place; None where it has another form, which systemd is free to use."""
    parts = dict(part.partition("=")[::2] for part in cursor.split(";"))
    try:
        return Cursor(parts["s"], int(parts["i"], 16))
    except (KeyError, ValueError):
        return None


def is_same_entry(one: str, other: str) -> bool:
    """Whether two cursors are of one entry: the same, or of one place, or of the same boot, times and content by way of another file."""
    if one == other:
        return True
    parts = [dict(part.partition("=")[::2] for part in cursor.split(";")) for cursor in (one, other)]
    ways = (("s", "i"), ("b", "m", "t", "x"))
    return any(all(key in parts[0] and parts[0][key] == parts[1].get(key) for key in way) for way in ways)


def missing_between(one: str, other: str) -> int | None:
    """Return how many entries at most stood between two, by their sequence numbers; None where these do not say."""
    before, after = parse_cursor(one), parse_cursor(other)
    if before is None or after is None or before.file_sequence != after.file_sequence or after.sequence <= before.sequence:
        return None
    return after.sequence - before.sequence - 1


def _record(fields: dict[str, Any]) -> dict[str, Any]:
    transport = _text(fields.get("_TRANSPORT"))
    record: dict[str, Any] = {"message": _text(fields.get("MESSAGE"), joined="\n")}
    if (time_us := _number(fields.get("__REALTIME_TIMESTAMP"))) is not None:
        record["timestamp"] = time_us * 1000
    if (priority := _number(fields.get("PRIORITY"))) is not None and 0 <= priority <= 7:
        record["level"] = _LEVELS[priority]
    number = _number(fields.get("SYSLOG_FACILITY"))
    facility = _FACILITIES.get(number, "") if number is not None else ""
    if facility:
        record["syslog.facility"] = facility
    for name, attribute in ATTRIBUTES.items():
        if name in fields and (text := _text(fields[name])):
            record[attribute] = text
    if (pid := _number(fields.get("_PID", fields.get("SYSLOG_PID")))) is not None:
        record["process.pid"] = pid
    is_kernel = transport == "kernel"
    service = "kernel" if is_kernel else _service(record, _text(fields.get("UNIT")))
    if service:
        record["service.name"] = service
    if is_kernel:
        record["log.stream"] = "kernel"
        record |= xid.event_of(record["message"]) or {}
    elif facility in _AUTH:
        record["log.stream"] = "auth"
    return record


def _service(record: dict[str, Any], about_unit: str) -> str:
    """What the entry's service is called: its unit, what systemd itself speaks of, else what the sender calls itself."""
    unit = str(record.get("systemd.unit", ""))
    if unit == "init.scope" and about_unit:
        unit = about_unit
    if unit.endswith(".service"):
        return unit.removesuffix(".service")
    return str(record.get("syslog.identifier") or record.get("process.executable.name") or unit)


def _text(value: Any, joined: str = ", ") -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if value and all(type(one) is int and 0 <= one <= 255 for one in value):
            return bytes(value).decode("utf-8", "replace")
        return joined.join(_text(one) for one in value if not isinstance(one, (list, dict)) or _is_bytes(one))
    return "" if value is None or isinstance(value, dict) else str(value)


def _is_bytes(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one <= 255 for one in value)


def _number(value: Any) -> int | None:
    text = _text(value).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else None
