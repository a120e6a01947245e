"""The one HTTP port: `/healthz` (alive), `/readyz` (taking records, with the reasons), `/metrics` (Prometheus).

On an address that only this machine reaches everything is open. On any other address all but the two health paths ask for the key, and
without a key are not served unless `allow_unauthenticated` says so in so many words; `/readyz` then says only yes or no. An address that
sends wrong keys too often gets nothing but health for a while: connections are not refused, because probes may come from the same address.
Not here: how requests are read (`http_get.py`), what the state is (`observe.py` answers `Observed`).
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from emp_pipe.accepting import Cut, CutConnections, Strikes
from emp_pipe.clock import Clock, SystemClock
from emp_pipe.config import HttpConfig, ListenAddress, parse_listen
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.http_get import GetLimits, HttpGetServer, Request, Response
from emp_pipe.self_metrics import Metrics
from emp_pipe.tls import WatchedContext


class Observed(Protocol):
    """What the HTTP port asks of the pipeline."""

    def readiness(self) -> Readiness: ...

    async def state(self) -> dict[str, Any]: ...

    async def metrics_text(self) -> bytes: ...


class Readiness(NamedTuple):
    """Whether records are taken now, and in one sentence why not."""

    ready: bool
    reason: str


class HttpServer:
    """Serves the port from `start` to `stop`."""

    def __init__(self, config: HttpConfig, observed: Observed, clock: Clock | None = None, metrics: Metrics | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._metrics = metrics or Metrics()
        self._listen = parse_listen(config.listen)
        self._key = _revealed(config)
        self._strikes = Strikes(config.max_refusals_per_address_per_s, self._clock)
        self._cut = CutConnections(self._metrics, "http")
        self._observed = observed
        self._server: HttpGetServer | None = None
        self.port = 0

    async def start(self) -> None:
        """Open the port. Raises ConfigError naming address and setting when it cannot be had."""
        config = self._config
        tls = WatchedContext.of_server(config.tls, self._clock, "http.tls") if config.tls is not None else None
        try:
            listener = _open(self._listen)
        except OSError as error:
            raise _cannot_listen(error, self._listen) from error
        limits = GetLimits(config.max_connections, config.max_connections_per_address, config.max_head_bytes, config.timeout_s)
        self._server = HttpGetServer(self._answer, limits=limits, tls=tls, clock=self._clock, metrics=self._metrics)
        await self._server.start(listener)
        self.port = listener.getsockname()[1]

    @property
    def url(self) -> str:
        host = self._listen.host or "127.0.0.1"
        scheme = "http" if self._config.tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def read_key(self, config: HttpConfig) -> Callable[[], None]:
        """Read the key again where it is kept; what is returned puts it to use. Raises ConfigError; then nothing has changed."""
        key = _revealed(config)

        def use() -> None:
            self._key = key

        return use

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()

    async def _answer(self, request: Request) -> Response:
        if request.path == "/healthz":
            return Response(200, b"ok\n", "text/plain; charset=utf-8")
        if request.path == "/readyz":
            return await self._readyz(request)
        if self._key is not None and self._strikes.is_out(request.address):  # no guess of it is looked at
            self._cut.count(Cut.REFUSED_TOO_OFTEN)
            return _json({"error": "too many wrong keys came from this address of late"}, 429, is_last=True)
        if not self._allowed(request):
            if self._key is None:
                error = "not served on this address without a key; set http.key, or say http.allow_unauthenticated: true"
                return _json({"error": error}, 403)
            self._strikes.strike(request.address)
            return _json({"error": "needs the header Authorization: Bearer <http.key>"}, 401)
        if request.path == "/metrics":
            return Response(200, await self._observed.metrics_text(), "text/plain; version=0.0.4; charset=utf-8")
        return _json({"error": "there are /healthz, /readyz and /metrics"}, 404)

    async def _readyz(self, request: Request) -> Response:
        readiness = self._observed.readiness()
        body: dict[str, Any] = {"ready": readiness.ready}
        if not self._strikes.is_out(request.address):
            if self._allowed(request):
                body |= {"reason": readiness.reason} | await self._observed.state()
            elif self._key is not None and "authorization" in request.headers:  # a guess, while a probe shows none
                self._strikes.strike(request.address)
        return _json(body, 200 if readiness.ready else 503)

    def _allowed(self, request: Request) -> bool:
        if self._key is None:
            return self._listen.is_local or self._config.allow_unauthenticated
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key)


def _revealed(config: HttpConfig) -> bytes | None:
    return config.key.reveal("http.key").encode() if config.key is not None else None


def _json(body: dict[str, Any], status: int, *, is_last: bool = False) -> Response:
    return Response(status, json.dumps(body, default=str).encode() + b"\n", is_last=is_last)


def _open(listen: ListenAddress) -> socket.socket:
    """Return the listening socket; opened here, because the event loop would start threads to look up a number."""
    if listen.host is not None:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        return socket.create_server((listen.host, listen.port), family=family)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", listen.port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return socket.create_server(("", listen.port))


def _cannot_listen(error: OSError, listen: ListenAddress) -> ConfigError:
    address = f"{listen.host or '*'}:{listen.port}"
    how = "another address with --set http.listen=… or PORT"
    if error.errno == errno.EADDRINUSE:
        detail = f"another process listens on {address}"
        return ConfigError(ErrorKind.ADDRESS_IN_USE, place="http.listen", detail=detail, advice=f"stop it, or set {how}")
    detail = f"cannot listen on {address} ({error.strerror or error})"
    return ConfigError(ErrorKind.CONFIG_INVALID, place="http.listen", detail=detail, advice=f"set {how}")


async def watch_event_loop_delay(observe: Callable[[float], None], interval_s: float = 0.5) -> None:
    """Tell `observe` again and again by how many seconds the event loop was late."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        observe(max(loop.time() - due_s, 0.0))
