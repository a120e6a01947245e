"""A name that a connection goes to: a resolver that hangs holds up nobody but those who want that very name."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from emp_pipe.delivery import dial

PATIENCE_S = 30.0


class Resolver:
    """In the place of the system's: `hangs.*` waits until `goes_on`, `127.test` is loopback, everything else is unknown."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *_: object, flags: int = 0, **__: object) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        self.asked.append(host)
        if host.startswith("hangs."):
            self.goes_on.wait(PATIENCE_S)
        if host in ("127.test", "hangs.127.test"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.goes_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("name: "):
            thread.join(PATIENCE_S)


async def _give_up_on(name: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await dial.resolve(name, 443)


async def test_names_that_hang_take_no_thread_that_others_need(resolver: Resolver) -> None:
    more_than_there_are = 2 * ((os.cpu_count() or 1) + 4) + 32
    await asyncio.gather(*(_give_up_on(f"hangs.{number}.test") for number in range(more_than_there_are)))
    async with asyncio.timeout(PATIENCE_S / 2):
        assert await asyncio.to_thread(lambda: "done") == "done"
        assert await dial.resolve("127.test", 443) == [(socket.AF_INET, ("127.0.0.1", 443))]


async def test_a_name_that_hangs_is_asked_for_once_however_many_want_it_and_however_often(resolver: Resolver) -> None:
    for _ in range(5):
        await asyncio.gather(*(_give_up_on("hangs.127.test") for _ in range(20)))
    waiting = [asyncio.create_task(dial.resolve("hangs.127.test", 443)) for _ in range(3)]
    await asyncio.sleep(0)
    resolver.goes_on.set()
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.gather(*waiting) == [[(socket.AF_INET, ("127.0.0.1", 443))]] * 3
    assert resolver.asked == ["hangs.127.test"]


async def test_an_answer_is_for_those_who_waited_and_is_not_kept(resolver: Resolver) -> None:
    for _ in range(2):
        await dial.resolve("127.test", 443)
        with pytest.raises(OSError, match="not known"):
            await dial.resolve("nowhere.test", 443)
    assert resolver.asked == ["127.test", "nowhere.test"] * 2


def test_a_name_that_hangs_does_not_hold_up_the_end_of_a_loop(resolver: Resolver) -> None:
    asyncio.run(_give_up_on("hangs.127.test"))
    assert not resolver.goes_on.is_set()
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "name: hangs.127.test"] == [True]
