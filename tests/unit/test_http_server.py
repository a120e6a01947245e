"""The HTTP port: health for everybody, everything else only for this machine or with the key."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from emp_pipe.config import HttpConfig, parse_listen
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.http_server import HttpServer, Readiness
from tests.support.command import free_port


class State:
    ready = True

    def readiness(self) -> Readiness:
        return Readiness(self.ready, "because")

    async def state(self) -> dict[str, Any]:
        return {"machine_id": "gpu-1"}

    async def metrics_text(self) -> bytes:
        return b"emp_pipe_x 1.0\n"


class Answer:
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text


@asynccontextmanager
async def served(state: State | None = None, **settings: Any) -> AsyncIterator[Any]:
    server = HttpServer(HttpConfig.model_validate({"listen": "127.0.0.1:0", **settings}), state or State())
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:

            async def get(path: str, **headers: str) -> Answer:
                async with session.get(path, headers=headers) as answer:
                    return Answer(answer.status, await answer.text())

            yield get
    finally:
        await server.stop()


async def test_alive_is_said_to_everybody() -> None:
    async with served(key="k") as get:
        assert (await get("/healthz")).status == 200


async def test_readiness_is_said_with_its_reason_and_state_on_loopback() -> None:
    async with served() as get:
        answer = await get("/readyz")
    assert answer.status == 200
    assert json.loads(answer.text) == {"ready": True, "reason": "because", "machine_id": "gpu-1"}


async def test_not_ready_is_503() -> None:
    state = State()
    state.ready = False
    async with served(state) as get:
        assert (await get("/readyz")).status == 503


async def test_others_learn_yes_or_no_and_nothing_more() -> None:
    async with served(listen=f"*:{free_port()}") as get:
        answer = await get("/readyz")
    assert json.loads(answer.text) == {"ready": True}


async def test_metrics_are_served_on_loopback() -> None:
    async with served() as get:
        answer = await get("/metrics")
    assert (answer.status, answer.text) == (200, "emp_pipe_x 1.0\n")


async def test_metrics_are_not_served_to_others_without_a_key() -> None:
    async with served(listen=f"*:{free_port()}") as get:
        answer = await get("/metrics")
    assert answer.status == 403
    assert "http.key" in answer.text


async def test_metrics_ask_for_the_key_where_one_is_set_on_loopback_too() -> None:
    async with served(key="k3y") as get:
        assert (await get("/metrics")).status == 401
        assert (await get("/metrics", Authorization="Bearer wrong")).status == 401
        assert (await get("/metrics", Authorization="Bearer k3y\xe9")).status == 401
        assert (await get("/metrics", Authorization="Bearer k3y")).status == 200


async def test_a_port_in_use_is_an_error_that_names_address_and_setting() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError) as caught:
            await HttpServer(HttpConfig.model_validate({"listen": address}), State()).start()
    assert caught.value.kind is ErrorKind.ADDRESS_IN_USE
    assert str(caught.value).startswith(f"http.listen: another process listens on {address}; stop it, or set another address with")


@pytest.mark.parametrize("text", ["", "8080", "host:", "host:port", "host:70000", "host:²"])
def test_what_is_no_address_is_an_error(text: str) -> None:
    with pytest.raises(ValidationError, match="is not an address"):
        HttpConfig.model_validate({"listen": text})


@pytest.mark.parametrize(
    ("text", "local"), [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("*:1", False), ("10.0.0.1:1", False)]
)
def test_only_loopback_is_local(text: str, local: bool) -> None:
    assert parse_listen(text).is_local is local
