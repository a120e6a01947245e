"""What the tests of checks stand on: real servers that answer as they are told, and a receiver that checks them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from emp_pipe.receivers.checks import ChecksConfig, ChecksReceiver
from tests.support.context import make_context
from tests.support.reading import PATIENCE_S, Kept, receiving

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(routes: dict[str, Answer], port: int = 0, **how: Any) -> AsyncIterator[str]:
    """An aiohttp server; its address."""
    app = web.Application()
    for path, answer in routes.items():
        app.router.add_get(path, answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, **how)
    await site.start()
    try:
        host, bound = runner.addresses[0][:2]
        yield f"{'https' if how else 'http'}://{host}:{bound}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw(say: bytes, *, keep_open: bool = False) -> AsyncIterator[int]:
    """A server that says the same to everybody, whatever is asked; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(100)
            writer.write(say)
            await writer.drain()
            if keep_open:
                await reader.read()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def answering(body: Any, status: int = 200, **more: Any) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, content_type="application/json", **more)

    return answer


def checker(*checks: dict[str, Any], **settings: Any) -> ChecksReceiver:
    checks = tuple({"down_after": 1, **check} for check in checks)
    config = ChecksConfig.model_validate({"interval_s": 0.02, "find_comfyui": False, "timeout_s": PATIENCE_S, "checks": checks, **settings})
    return ChecksReceiver("checks", config, make_context())


async def first_event(check: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Return the first event of a check."""
    kept = Kept()
    async with receiving(checker({"name": "x", **check}, **settings), kept):
        return await kept.wait_for_record(**{"check.name": "x"})
