"""The job queue's own Redis (`HUB_REDIS_URL`, `REDIS_URL`) is never written to: a log that would lie in it is refused.

A log there would share the queue's memory, its limit and every FLUSHDB with production. These variables alone never choose a buffer, and
this is the one place that looks at them. Not here: what does choose one (`environment.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from emp_pipe.errors import ConfigError, ErrorKind

VARIABLES = ("HUB_REDIS_URL", "REDIS_URL")
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


class _Database(NamedTuple):
    """A database of a server: what two URLs may name in different words."""

    server: str
    port: int
    number: str


def refuse(url: str, environment: Mapping[str, str], place: str) -> None:
    """Raise ConfigError where a log's URL names the database of the job queue."""
    log = _database(url)
    for name in VARIABLES:
        queue = environment.get(name, "").strip()
        if queue and (queue == url.strip() or (log is not None and log == _database(queue))):
            raise ConfigError(
                ErrorKind.CONFIG_INVALID,
                place=place,
                detail=f"this is the Redis of the job queue ({name}): the log is never kept there",
                advice=f"give the log a Redis of its own; where this one is its own, leave {name} out of this process's environment",
            )


def _database(url: str) -> _Database | None:
    """Return which database a URL names, None where it names none."""
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port or 6379
    except ValueError:
        return None
    in_query = dict(parse_qsl(parts.query)).get("db", "")
    if parts.scheme == "unix":
        return _Database(unquote(parts.path), 0, _number(in_query))
    if not host:
        return None
    return _Database("localhost" if host in _HERE else host, port, _number(in_query or parts.path.strip("/")))


def _number(text: str) -> str:
    return text.lstrip("0") or "0"
