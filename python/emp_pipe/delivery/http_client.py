"""The one HTTP client factory: sessions with keep-alive, our User-Agent, TLS that follows its files, and a body that is not copied.

A session is bound to the event loop in which it was opened. Redirects are never followed: a POST with a key in its header goes where the
configuration says or nowhere. What an answer means is in `http_answers.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from emp_pipe import __version__

if TYPE_CHECKING:
    from emp_pipe._core import Block

_CONNECT_TIMEOUT_S = 10.0
_MOST_ANSWER_BYTES = 64 << 10
_COPY_BELOW_BYTES = 128 << 10
"""Up to here one write of a copy is cheaper than two writes."""


class BlockPayload(Payload):
    """A block's payload as a request body. Above a large one the header goes out on its own: aiohttp would copy the body behind it."""

    def __init__(self, block: Block) -> None:
        self._view = memoryview(block)
        super().__init__(self._view)
        self._size = self._view.nbytes

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._view).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        if self._view.nbytes > _COPY_BELOW_BYTES:
            writer.send_headers()
        await writer.write(self._view)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)


def open_session(*, max_connections: int) -> aiohttp.ClientSession:
    """Return a session for one destination. The time of a request is the caller's to limit."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_connections, ttl_dns_cache=30),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"emp-pipe/{__version__}"},
        skip_auto_headers=("Accept-Encoding",),
    )


async def read_answer(response: aiohttp.ClientResponse) -> bytes:
    """Return the answer's body, or its beginning where it is longer than any answer has a reason to be."""
    if response.content_length == 0:
        return b""
    body = bytearray()
    while len(body) < _MOST_ANSWER_BYTES:
        piece: Any = await response.content.read(_MOST_ANSWER_BYTES - len(body))
        if not piece:
            break
        body += piece
    return bytes(body)
