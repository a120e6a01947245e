"""A Redis that changes while the log stands on it: what it promises is asked again, and what has changed is said."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from emp_pipe.buffers.redis_client import RedisClientConfig, connect
from emp_pipe.buffers.redis_server import RedisStated
from emp_pipe.buffers.redis_watch import ServerWatch
from emp_pipe.clock import SystemClock
from emp_pipe.errors import ConfigError
from tests.support.redis_cluster import ask
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


@asynccontextmanager
async def watching(server: RedisServer) -> AsyncIterator[ServerWatch]:
    config = RedisClientConfig.model_validate({"url": server.url, "connect_timeout_s": 1})
    client: Any = connect(config, "buffer", SystemClock())
    try:
        yield ServerWatch(client, config, RedisStated(), SystemClock())
    finally:
        await client.aclose()


async def test_before_it_was_asked_nothing_is_promised() -> None:
    with RedisServer() as server:
        async with watching(server) as watch:
            assert "not asked yet" in watch.durability
            assert watch.details == {}
            assert watch.warnings == []


async def test_a_setting_that_became_weaker_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(maxmemory_bytes=256 << 20) as server:
        async with watching(server) as watch:
            await watch.begin()
            assert watch.warnings == []
            ask(server, "CONFIG", "SET", "appendfsync", "everysec")
            with caplog.at_level(logging.WARNING):
                await watch.ask_again()
            assert "what Redis promises has changed" in caplog.text
            assert "the last two seconds" in watch.durability
            assert watch.details["server"]["survives"]["power_cut"] is False
            caplog.clear()
            await watch.ask_again()
            assert caplog.text == "", "it is said once"


async def test_a_server_that_begins_to_throw_away_is_said_loudly_until_it_is_mended(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(maxmemory_bytes=256 << 20) as server:
        async with watching(server) as watch:
            await watch.begin()
            ask(server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            for _ in range(2):
                caplog.clear()
                await watch.ask_again()
                assert "what was acknowledged is in danger" in caplog.text
                assert "BUT NOW" in watch.durability
                assert "allkeys-lru" in watch.details["server"]["warnings"][0]
            ask(server, "CONFIG", "SET", "maxmemory-policy", "noeviction")
            await watch.ask_again()
            assert "BUT NOW" not in watch.durability
            assert watch.details["server"]["warnings"] == []


async def test_a_server_that_is_away_leaves_what_was_known() -> None:
    with RedisServer(maxmemory_bytes=256 << 20) as server:
        async with watching(server) as watch:
            await watch.begin()
            before = watch.durability
            server.kill()
            await watch.ask_again()
            assert watch.durability == before


async def test_a_server_that_throws_away_is_no_beginning() -> None:
    with RedisServer(policy="allkeys-lru") as server:
        async with watching(server) as watch:
            with pytest.raises(ConfigError, match="allkeys-lru"):
                await watch.begin()
