"""The HTTP client and a server for it, for tests: requests that must get through, requests that must fail, time that a test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from emp_pipe.delivery.http_client import HttpClient, Target
from emp_pipe.delivery.http_link import Reply
from emp_pipe.errors import DeliveryError, Retry
from tests.support.context import make_context
from tests.support.manual_clock import ManualClock
from tests.support.scripted_http import PATIENCE_S, ScriptedServer

LARGE = memoryview(bytes(range(256)) * 32_768)
"""8 MiB: more than the sockets of both sides take."""
SMALL = memoryview(b"small" * 20)
OK = b"HTTP/1.1 200 OK\r\n"


class Client:
    """A client and what it has counted."""

    def __init__(self, server: ScriptedServer, **settings: Any) -> None:
        self.context = make_context(settings.pop("clock", None))
        self.target = Target.of(server.url, {"Content-Type": "text/plain"}, "test")
        self.http = HttpClient("test", self.context, **{"max_connections": 4, **settings})

    async def post(self, body: memoryview = SMALL) -> Reply:
        async with asyncio.timeout(PATIENCE_S):
            return await self.http.post(self.target, body)

    async def error(self, body: memoryview = SMALL) -> DeliveryError:
        with pytest.raises(DeliveryError) as caught:
            await self.post(body)
        assert caught.value.retry is Retry.LATER
        assert len(str(caught.value)) < 500
        return caught.value

    async def good(self, server: ScriptedServer) -> int:
        """A request that gets its own answer and no other; return the connection it went on."""
        reply = await self.post()
        assert (reply.status, reply.body) == (200, f"answer {len(server.requests)}".encode())
        assert server.requests[-1].body == SMALL
        return server.requests[-1].connection

    @property
    def resent(self) -> float:
        return self.context.metrics.registry.get_sample_value("emp_pipe_exporter_resent_requests_total", {"component": "test"}) or 0.0


@contextlib.asynccontextmanager
async def talking(*, tls: Any = None, **settings: Any) -> AsyncIterator[tuple[ScriptedServer, Client]]:
    async with ScriptedServer(tls=tls) as server:
        client = Client(server, **settings)
        try:
            yield server, client
        finally:
            await client.http.close()


async def until(is_so: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110  # states without an event of their own
            await asyncio.sleep(0.005)


async def pumped(clock: ManualClock, is_so: Any) -> None:
    """Let the time go by until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            clock.advance(1.0)
            await asyncio.sleep(0.002)
