"""One look at a Redis: PING, and what INFO tells of it. Nothing else is ever asked of it, for it may be somebody's production.

Its protocol is spoken here in four kinds of answers, each bounded, so that no client library is needed where no buffer is in Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from emp_pipe.delivery.dial import dial
from emp_pipe.readings import Attributes, Readings, clean
from emp_pipe.receivers.checks_probes import UP, Outcome
from emp_pipe.tls import WatchedContext

_PORT = 6379
_MOST_LINE_BYTES = 4096
_MOST_INFO_BYTES = 262_144
_UP_DOWN = {
    "connected_clients": ("redis.clients.connected", "{client}"),
    "blocked_clients": ("redis.clients.blocked", "{client}"),
    "used_memory": ("redis.memory.used", "By"),
    "used_memory_rss": ("redis.memory.rss", "By"),
    "maxmemory": ("redis.maxmemory", "By"),
    "connected_slaves": ("redis.slaves.connected", "{replica}"),
}
_COUNTERS = {
    "total_commands_processed": ("redis.commands.processed", "{command}"),
    "total_connections_received": ("redis.connections.received", "{connection}"),
    "rejected_connections": ("redis.connections.rejected", "{connection}"),
    "keyspace_hits": ("redis.keyspace.hits", "{hit}"),
    "keyspace_misses": ("redis.keyspace.misses", "{miss}"),
    "evicted_keys": ("redis.keys.evicted", "{key}"),
    "expired_keys": ("redis.keys.expired", "{key}"),
}
"""The names that the Collector's receiver for Redis has."""


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """Where a Redis is: a host and port, or a Unix socket."""

    host: str
    port: int
    path: str = ""
    is_tls: bool = False

    @classmethod
    def parse(cls, address: str) -> RedisPlace:
        """Of redis://host:port, rediss://host:port or unix:///path. Raises ValueError, also for one that holds a password."""
        parts = urlsplit(address)
        if parts.username or parts.password:
            raise ValueError("must not hold a password: use `username` and `password`")
        if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
            return cls("", 0, parts.path)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.port == 0:
            raise ValueError("must be redis://host:port, rediss://host:port or unix:///path")
        return cls(parts.hostname, parts.port or _PORT, is_tls=parts.scheme == "rediss")


class NotRedis(Exception):
    """The answer is none of Redis."""


@dataclass(frozen=True, slots=True)
class RedisProbe:
    """PING is answered; INFO too, where the user may."""

    at: RedisPlace
    username: str
    password: str
    tls: WatchedContext | None = None
    server_name: str | None = None

    async def look(self, readings: Readings, of: Attributes) -> Outcome:
        reader, writer = await self._open()
        try:
            if self.password:
                answer = await _ask(reader, writer, "AUTH", *((self.username,) if self.username else ()), self.password)
                if not answer.startswith(b"+"):
                    return Outcome("unauthenticated", f"the password is refused ({_said(answer)})")
            answer = await _ask(reader, writer, "PING")
            if answer != b"+PONG":
                kind = "unauthenticated" if answer.startswith((b"-NOAUTH", b"-NOPERM")) else "not_ready"
                return Outcome(kind, f"PING is answered with {_said(answer)}")
            info = await _ask(reader, writer, "INFO")
            if info.startswith(b"$"):
                _put(readings, of, info[1:].decode("utf-8", "replace"))
            return UP
        except (NotRedis, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            return Outcome("protocol", f"it does not answer as Redis does ({error})"[:300])
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                writer.transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.at.path:
            return await asyncio.open_unix_connection(self.at.path, limit=_MOST_LINE_BYTES)
        sock = await dial(self.at.host, self.at.port)
        try:
            tls = self.tls.current() if self.at.is_tls and self.tls is not None else None
            name = (self.server_name or self.at.host) if tls is not None else None
            return await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name, limit=_MOST_LINE_BYTES)
        except BaseException:
            sock.close()
            raise


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *words: str) -> bytes:
    """Return the answer to a command: its line with its mark (`+PONG`, `-ERR …`), or `$` and the text. Raises NotRedis."""
    parts = [word.encode() for word in words]
    writer.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
    await writer.drain()
    line = (await reader.readuntil(b"\r\n"))[:-2]
    if line[:1] in (b"+", b"-"):
        return line
    size = line[1:]
    if line[:1] != b"$" or not size.isdigit() or len(size) > 9:
        raise NotRedis(f"an answer begins with {line[:20]!r}")
    if int(size) > _MOST_INFO_BYTES:
        raise NotRedis(f"an answer of {int(size):,} bytes")
    return b"$" + (await reader.readexactly(int(size) + 2))[:-2]


def _said(answer: bytes) -> str:
    return clean(answer[:200].decode("utf-8", "replace"))


def _put(readings: Readings, of: Attributes, info: str) -> None:
    """Put what INFO tells that is a number."""
    fields = dict(line.strip().partition(":")[::2] for line in info.splitlines() if ":" in line)
    numbers = {name: int(text) for name, text in fields.items() if text.isascii() and text.isdecimal() and len(text) <= 19}
    uptime_s = numbers.get("uptime_in_seconds")
    if uptime_s is not None and uptime_s < 1 << 32:
        readings.gauge("redis.uptime", uptime_s, "s", of)
    since = readings.now_unix_nano - (uptime_s or 0) % (1 << 32) * 1_000_000_000
    for field, (name, unit) in _UP_DOWN.items():
        if field in numbers:
            readings.up_down_counter(name, numbers[field], unit, of)
    for field, (name, unit) in _COUNTERS.items():
        if field in numbers:
            readings.counter(name, numbers[field], unit, of, since_unix_nano=since)
