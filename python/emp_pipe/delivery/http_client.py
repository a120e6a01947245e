"""The one HTTP client: connections that are kept, our User-Agent, TLS that follows its files, and a body that is not copied.

A client is bound to the event loop in which it was opened. It follows no redirect, uses no proxy and keeps no cookie: a POST with a key in
its header goes where the configuration says or nowhere. Why it is not aiohttp's: `docs/decisions/012-http-client.md`. Not here: what an
answer means (`http_answers.py`), the bytes on a connection (`http_link.py`), many addresses of a name (`dial.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from emp_pipe import __version__
from emp_pipe.component import Context
from emp_pipe.delivery.dial import dial
from emp_pipe.delivery.http_link import DEADLINES, Deadlines, HttpLink, LinkBroken, LinkOverdue, NotHttp, Reply
from emp_pipe.errors import ConfigError, DeliveryError, ErrorKind
from emp_pipe.tls import WatchedContext

_SWEEP_INTERVAL_S = 1.0
_KEEP_IDLE_S = 15.0
_FAREWELL_S = 0.5
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FRAMING = frozenset({"host", "content-length", "transfer-encoding"})
_PATH_CHARACTERS = "/%:@!$&'()*+,;=~-._"


class Origin(NamedTuple):
    """Whom a connection reaches."""

    host: str
    port: int
    is_tls: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes, and all of its head that is the same each time."""

    origin: Origin
    start: bytes

    @classmethod
    def of(cls, address: str, headers: Mapping[str, str], place: str, *, method: str = "POST") -> Target:
        """Of a checked address (`http_address`). Raises ConfigError for a header that is none, or says where the body ends."""
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not value.isprintable() or not value.isascii() or name.lower() in _FRAMING:
                raise ConfigError(ErrorKind.CONFIG_INVALID, place=f"{place}: headers.{name}", detail="this header cannot be sent")
        parts = urlsplit(address)
        is_tls = parts.scheme == "https"
        host, usual_port = (parts.hostname or "").encode("idna").decode("ascii"), 443 if is_tls else 80
        port = parts.port or usual_port
        shown = f"[{host.partition('%')[0]}]" if ":" in host else host
        path = quote(parts.path or "/", safe=_PATH_CHARACTERS)
        query = f"?{quote(parts.query, safe=_PATH_CHARACTERS + '?')}" if parts.query else ""
        lines = [f"{method} {path}{query} HTTP/1.1", f"Host: {shown if port == usual_port else f'{shown}:{port}'}"]
        if "user-agent" not in {name.lower() for name in headers}:
            lines.append(f"User-Agent: emp-pipe/{__version__}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return cls(Origin(host, port, is_tls), ("\r\n".join(lines) + "\r\n").encode("ascii"))


class HttpClient:
    """Posts to one destination, from `open` to `close`. What goes wrong is a DeliveryError at `place`."""

    def __init__(
        self,
        place: str,
        context: Context,
        *,
        max_connections: int,
        tls: WatchedContext | None = None,
        server_name: str | None = None,
        deadlines: Deadlines = DEADLINES,
    ) -> None:
        self._place = place
        self._clock = context.clock
        self._max_connections = max_connections
        self._tls = tls
        self._server_name = server_name
        self._deadlines = deadlines
        self._links: set[HttpLink] = set()
        self._idle: dict[tuple[Origin, ssl.SSLContext | None], list[HttpLink]] = {}
        self._is_closed = False
        self._sweeper: asyncio.Task[None] | None = None
        self._all_lost = asyncio.Event()
        self._resent = context.metrics.counter(
            "exporter_resent",
            unit="requests",
            help="Requests sent again at once, because the destination had closed the kept connection before it answered.",
            labels=("component",),
        ).labels(place)

    async def post(self, target: Target, body: memoryview) -> Reply:
        """Return the answer to a POST. Raises DeliveryError: UNREACHABLE, TIMED_OUT, SERVER_ERROR.

        A kept connection may be closed by the other side just as the request goes out. If it ends without a byte of an answer, the request
        goes once more, on a new connection."""
        origin = target.origin
        tls = self._context_of(origin)
        head = target.start + b"Content-Length: %d\r\n\r\n" % body.nbytes
        try:
            link = self._kept(origin, tls)
            if link is not None:
                try:
                    return self._keep(origin, tls, link, await link.send(head, body))
                except LinkBroken as error:
                    if not error.unanswered:
                        raise
                    self._resent.inc()
            link = await self._connect(origin, tls)
            return self._keep(origin, tls, link, await link.send(head, body))
        except LinkBroken as error:
            raise self._error(ErrorKind.UNREACHABLE, f"connection to {origin} broke before the answer ({error})") from error
        except LinkOverdue as error:
            raise self._error(ErrorKind.TIMED_OUT, f"{origin}: {error}") from error
        except NotHttp as error:
            detail = f"{origin} answers with something that is not HTTP ({error})"
            raise self._error(ErrorKind.SERVER_ERROR, detail, error.advice) from error

    async def close(self) -> None:
        """Close all connections; return when they are."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        for link in list(self._links):
            link.close()
        if self._links:
            self._all_lost.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._all_lost.wait()
        for link in list(self._links):
            link.abort()
        self._idle.clear()

    # --- connections --------------------------------------------------------------------------------

    def _kept(self, origin: Origin, tls: ssl.SSLContext | None) -> HttpLink | None:
        """Return the connection that was used last: those that are not needed grow old."""
        idle = self._idle.get((origin, tls))
        while idle:
            link = idle.pop()
            if link.is_open:
                return link
        return None

    def _keep(self, origin: Origin, tls: ssl.SSLContext | None, link: HttpLink, reply: Reply) -> Reply:
        if link.is_open:
            idle = self._idle.setdefault((origin, tls), [])
            if self._is_closed or len(idle) >= self._max_connections:
                link.close()
            else:
                link.since_s = self._clock.monotonic_s()
                idle.append(link)
        return reply

    async def _connect(self, origin: Origin, tls: ssl.SSLContext | None) -> HttpLink:
        loop = asyncio.get_running_loop()
        if self._sweeper is None:
            self._sweeper = loop.create_task(self._sweep(), name=f"{self._place}: connections")
        link = HttpLink(self._gone, is_tls=origin.is_tls, now_s=self._clock.monotonic_s)
        try:
            async with asyncio.timeout(self._deadlines.connect_s):
                sock = await dial(origin.host, origin.port)
                try:
                    name = (self._server_name or origin.host) if origin.is_tls else None
                    await loop.create_connection(lambda: link, sock=sock, ssl=tls, server_hostname=name)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            detail = f"no connection to {origin} within {self._deadlines.connect_s:g} s"
            raise self._error(ErrorKind.TIMED_OUT, detail) from error
        except ssl.SSLCertVerificationError as error:
            advice = "check the destination's certificate, or set `tls.ca_file`"
            raise self._error(ErrorKind.UNREACHABLE, f"certificate not accepted ({error.verify_message})", advice) from error
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            advice = "check that the port speaks TLS, and the certificates on both sides"
            raise self._error(ErrorKind.UNREACHABLE, f"cannot connect to {origin} (TLS failed: {reason})", advice) from error
        except OSError as error:
            raise self._error(ErrorKind.UNREACHABLE, f"cannot connect to {origin} ({error.strerror or error})") from error
        if link.is_open:
            self._links.add(link)
        return link

    def _context_of(self, origin: Origin) -> ssl.SSLContext | None:
        if not origin.is_tls:
            return None
        if self._tls is None:  # without a context, the request would go out in the clear
            raise ValueError("an https address needs `tls`")
        return self._tls.current()

    def _gone(self, link: HttpLink) -> None:
        self._links.discard(link)
        if not self._links:
            self._all_lost.set()

    async def _sweep(self) -> None:
        """Every second: end what takes too long, close what has not been used for a while or has another certificate."""
        while True:
            await self._clock.sleep(_SWEEP_INTERVAL_S)
            now_s = self._clock.monotonic_s()
            for link in list(self._links):
                link.overdue(now_s, self._deadlines)
            tls = self._tls.current() if self._tls is not None else None
            for key, idle in list(self._idle.items()):
                is_current = not key[0].is_tls or key[1] is tls
                kept = [link for link in idle if link.is_open and is_current and now_s - link.since_s < _KEEP_IDLE_S]
                for link in set(idle) - set(kept):
                    link.close()
                if kept:
                    self._idle[key] = kept
                else:
                    del self._idle[key]

    def _error(self, kind: ErrorKind, detail: str, advice: str = "") -> DeliveryError:
        return DeliveryError(kind, place=self._place, detail=detail, advice=advice)
