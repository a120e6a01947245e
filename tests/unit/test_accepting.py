"""Accepting: a flood takes its turn and no more, and who has gone already costs no more than a look."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from emp_pipe.accepting import AcceptedProtocol, Acceptor
from emp_pipe.clock import SystemClock
from emp_pipe.logs import RateLimitedLogger, get_logger

PATIENCE_S = 30.0


class Served(AcceptedProtocol):
    """A connection that is greeted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.is_made = True
        transport.write(b"hello")

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(bytearray(64))


class Door:
    """Admits all and counts; `turns` has how many came in each turn of the loop that brought some."""

    def __init__(self) -> None:
        self.admitted = 0
        self.turns: list[int] = []
        self._turn_is_new = True

    def admit(self, address: str) -> bool:
        self.admitted += 1
        if self._turn_is_new:
            self._turn_is_new = False
            self.turns.append(0)
            asyncio.get_running_loop().call_soon(self._next_turn)
        self.turns[-1] += 1
        return True

    def _next_turn(self) -> None:
        self._turn_is_new = True

    def open(self, address: str) -> Served:
        return Served()

    async def expects_tls(self, sock: socket.socket, address: str) -> bool:
        return True

    def timed_out(self, address: str, timeout_s: float) -> None:
        raise AssertionError(address)

    def tls_failed(self, address: str, reason: str) -> None:
        raise AssertionError(reason)


@asynccontextmanager
async def accepting(door: Door, listener: socket.socket) -> AsyncIterator[None]:
    log = RateLimitedLogger(get_logger("test"))
    acceptor = Acceptor(door, tls=None, handshake_timeout_s=PATIENCE_S, clock=SystemClock(), log=log)
    async with asyncio.TaskGroup() as tasks:
        accept = tasks.create_task(acceptor.accept(listener, tasks))
        yield
        accept.cancel()
        acceptor.close()


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=500)


async def greeted(listener: socket.socket) -> bytes:
    """Come, and return what is said."""
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    async with asyncio.timeout(PATIENCE_S):
        said = await reader.readexactly(5)
    writer.close()
    return said


async def test_whoever_has_gone_before_it_was_accepted_is_let_go_and_those_behind_it_are_served(listener: socket.socket) -> None:
    door = Door()
    with listener:
        for _ in range(100):
            socket.create_connection(listener.getsockname()).close()
        async with accepting(door, listener):
            assert await greeted(listener) == b"hello"
    assert door.admitted == 1, "something was made for those who had gone"


async def test_of_a_flood_a_few_are_accepted_in_each_turn_of_the_loop(listener: socket.socket) -> None:
    door = Door()
    with listener:
        waiting = [socket.create_connection(listener.getsockname()) for _ in range(200)]
        async with accepting(door, listener):
            async with asyncio.timeout(PATIENCE_S):
                while door.admitted < len(waiting):  # noqa: ASYNC110 (turns of the loop are what is counted)
                    await asyncio.sleep(0)
            assert await greeted(listener) == b"hello"
        for one in waiting:
            one.close()
    assert max(door.turns) <= 16, "who is connected already waited for all of them"
    assert len(door.turns) >= 13


async def test_who_has_sent_all_and_ended_its_side_is_served(listener: socket.socket) -> None:
    door = Door()
    with listener, socket.create_connection(listener.getsockname()) as peer:
        peer.sendall(b"all of it")
        peer.shutdown(socket.SHUT_WR)
        async with accepting(door, listener):
            async with asyncio.timeout(PATIENCE_S):
                while not door.admitted:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert await asyncio.to_thread(peer.recv, 5) == b"hello"
