"""How emp-pipe's own log lines look: for people on a terminal, JSON otherwise, with the fleet's field names, as services write theirs.

Not here: what is logged, and how often (`logs.py`).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m", logging.DEBUG: "\x1b[2m"}
_PLAIN = "\x1b[0m"
_LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error", logging.CRITICAL: "fatal"}


def _component(record: logging.LogRecord) -> str:
    return record.name.removeprefix("emp_pipe.") if record.name != "emp_pipe" else ""


class HumanFormatter(logging.Formatter):
    """`12:00:00 WARN  forward/secure: text`."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        component = _component(record)
        message = f"{component}: {record.getMessage()}" if component else record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {_LEVELS.get(record.levelno, 'info').upper():<5} {message}"
        colour = _COLOURS.get(record.levelno, "") if self._colour else ""
        return f"{colour}{line}{_PLAIN}" if colour else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, *, machine_id: str, role: str) -> None:
        super().__init__()
        self._identity = {"service_type": f"emp-pipe-{role}", "machine_id": machine_id}

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": _LEVELS.get(record.levelno, "info"),
            "message": record.getMessage(),
            **self._identity,
        }
        if component := _component(record):
            fields["source"] = component
        if record.exc_info:
            fields["stack"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def set_up(level: str, *, machine_id: str, role: str, stream: TextIO | None = None) -> None:
    """Send emp-pipe's log lines to stderr in the form that suits it; other libraries' warnings too."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    on_terminal = stream.isatty()
    handler.setFormatter(HumanFormatter(colour=True) if on_terminal else JsonFormatter(machine_id=machine_id, role=role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("emp_pipe").setLevel(level.upper())
