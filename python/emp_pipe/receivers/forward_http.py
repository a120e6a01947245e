"""Records as JSON by HTTP on a Forward receiver's TCP ports, as some services send them there.

Who may: where a source must know a shared key, only a request with a token gets in, and without any token set HTTP is refused there: the
key itself never travels. A source that may send Forward without a key may send HTTP without one too, unless tokens are set. Certificates
and `allow_anonymous_source` hold for both.

With a shared key the server speaks first in Forward and the client in HTTP: only where both may come, the HELO waits for a moment.
What is asked and answered is `http_json`'s (`emp_pipe/http_json_service.py`), the look at the first byte `forward_detect.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from emp_pipe.bearer import BearerConfig, BearerTokens
from emp_pipe.component import Context
from emp_pipe.http_json_service import HttpJsonIntake, HttpJsonService
from emp_pipe.http_receiving import HttpReceiverConfig

if TYPE_CHECKING:
    from emp_pipe.receivers.forward import ForwardConfig
    from emp_pipe.receivers.forward_hub import Hub


class ForwardHttpConfig(BearerConfig):
    """Records as JSON by HTTP on the ports of a Forward receiver."""

    enabled: bool = Field(True, description="Take them: without a shared key from who may send Forward, with one only with a token.")
    helo_wait_ms: PositiveFloat = Field(
        100.0, description="How long the HELO waits for a request, where there are both a shared key and a token."
    )
    max_request_bytes: PositiveInt = Field(67_108_864, description="The largest request, as it comes and inflated.")
    max_total_bytes: PositiveInt = Field(
        268_435_456,
        description="What all requests under way together may hold until they are durable; over it clients are told to come again.",
    )
    request_timeout_s: PositiveFloat = Field(60.0, description="The time that a request may take to come whole.")
    max_head_bytes: Annotated[int, Field(ge=1024)] = Field(16_384, description="The longest request line with its headers.")
    head_timeout_s: PositiveFloat = Field(10.0, description="The time that the headers of a request may take.")
    idle_timeout_s: PositiveFloat = Field(180.0, description="A connection that is silent between requests for so long is closed.")

    @model_validator(mode="after")
    def _the_largest_request_has_room(self) -> ForwardHttpConfig:
        if self.max_total_bytes < self.max_request_bytes:
            raise ValueError("`max_total_bytes` must be at least `max_request_bytes`")
        return self


class HttpOnForward:
    """Takes connections over from a Forward receiver."""

    def __init__(self, id: str, config: ForwardConfig, context: Context) -> None:
        http = config.http
        self._id = id
        self._context = context
        self._config = HttpReceiverConfig(
            listen=config.listen or ("0",),
            allow_unauthenticated=True,  # the Forward receiver has judged its addresses
            tls=config.tls,
            token=http.token,
            client_tokens=http.client_tokens,
            max_request_bytes=http.max_request_bytes,
            max_total_bytes=http.max_total_bytes,
            request_timeout_s=http.request_timeout_s,
            max_head_bytes=http.max_head_bytes,
            head_timeout_s=http.head_timeout_s,
            idle_timeout_s=http.idle_timeout_s,
        )
        self._tokens = BearerTokens(self._config, f"{id}: http")
        self._helo_wait_s = http.helo_wait_ms / 1000
        self._service: HttpJsonService

    @classmethod
    def of(cls, id: str, config: ForwardConfig, context: Context) -> HttpOnForward | None:
        """Return None where it is off. Raises ConfigError where a secret cannot be read."""
        if not config.http.enabled:
            return None
        made = cls(id, config, context)
        made.reload()
        return made

    def start(self, hub: Hub) -> None:
        """Places and limits are the receiver's: `hub` has them."""
        otlp = HttpJsonIntake(self._id, self._config, self._context, hub.intake)
        self._service = service = HttpJsonService(self._config, self._tokens, otlp, hub.cut, self._context.clock)
        service.places = hub.places
        hub.http = self

    def reload(self) -> None:
        self._tokens.prepare()

    def takes(self, needs_a_key: bool, is_refused: bool) -> bool:
        """Return whether a source may speak HTTP at all."""
        return not is_refused and not (needs_a_key and self._tokens.is_open)

    def wait_before(self, say_helo: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(self._helo_wait_s, say_helo)

    def take_over(self, transport: asyncio.Transport, address: str, first_bytes: bytes) -> None:
        """Give a connection, which has its place already, another protocol."""
        connection = self._service.open(address)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.begin_with(first_bytes)
        if self._service.otlp.stopping:
            self._service.drain(connection)

    def sweep(self, now_s: float) -> None:
        service = self._service
        service.now_s = now_s
        for connection in list(service.connections):
            service.close_if_overdue(connection, now_s)
        service.otlp.publish()

    async def finish(self, deadline_monotonic_s: float) -> None:
        """Answer what becomes durable before the deadline, refuse what still comes, close."""
        service, clock = self._service, self._context.clock
        service.otlp.stopping = True
        for connection in list(service.connections):
            service.drain(connection)
        now_s = clock.monotonic_s()
        await service.otlp.finish(deadline_monotonic_s - min(0.5, (deadline_monotonic_s - now_s) / 4))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(deadline_monotonic_s - clock.monotonic_s(), 0.0)):
                for connection in list(service.connections):
                    await connection.closed.wait()

    def close(self) -> None:
        self._service.end()
        self._service.otlp.publish()
        self._service.otlp.close()
