"""What the tests that kill a deriver share: a process whose destination is away, who sends to it, how it dies, and what its log holds then.

The destination is away all the time, so everything that is derived stays in the log and is read from there at the end: no repeat of an
exporter can hide or fake one of the derivers.
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiohttp
from google.protobuf.message import Message

from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.clock import SystemClock
from emp_pipe.component import Context
from emp_pipe.log.protocol import Delivery
from emp_pipe.self_metrics import Metrics
from tests.chaos.fleet import PATIENCE_S, Member, member
from tests.support.command import free_port

POINTS = ("derive.commit", "derive.committed", "log.append", "log.commit")
AWAY = "otlp_http/away"
K = TypeVar("K")


def deriving(directory: Path, processors: Mapping[str, Mapping[str, Any]]) -> tuple[Member, int]:
    """Write the file of a process with these processors; return it and its OTLP/HTTP port."""
    otlp_port = free_port()
    parts = {
        "receivers": {"otlp_http": {"listen": f"127.0.0.1:{otlp_port}"}},
        "processors": processors,
        "exporters": {AWAY: {"endpoint": f"http://127.0.0.1:{free_port()}", "retry_initial_s": 5}},
    }
    return member(directory, "deriving", parts), otlp_port


class OnceSender(ABC, Generic[K]):
    """Posts each request once, and knows which were acknowledged: one without an answer may have been kept or not."""

    pace_s = 0.0

    def __init__(self, port: int, chance: random.Random, signals: Sequence[str]) -> None:
        """`signals`: what each of its connections sends."""
        self._port = port
        self._chance = chance
        self._signals = signals
        self._stopped = False
        self.acked: set[K] = set()
        self.died = 0
        """Requests whose connection broke while they waited for an answer."""

    @abstractmethod
    def request(self, signal: str) -> tuple[Iterable[K], Message]:
        """Return the next request and what its acknowledgement is remembered by."""

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session, asyncio.TaskGroup() as tasks:
            for signal in self._signals:
                tasks.create_task(self._send_all(session, signal))

    def stop(self) -> None:
        self._stopped = True

    async def wait_acked(self, more: int) -> None:
        wanted = len(self.acked) + more
        async with asyncio.timeout(PATIENCE_S):
            while len(self.acked) < wanted:  # noqa: ASYNC110 (counted by several tasks)
                await asyncio.sleep(0.01)

    async def _send_all(self, session: aiohttp.ClientSession, signal: str) -> None:
        while not self._stopped:
            keys, request = self.request(signal)
            try:
                url = f"http://127.0.0.1:{self._port}/v1/{signal}"
                headers = {"Content-Type": "application/x-protobuf"}
                async with session.post(url, data=request.SerializeToString(), headers=headers) as answer:
                    if answer.status == 200:
                        self.acked.update(keys)
                    await asyncio.sleep(self.pace_s if answer.status == 200 else 0.05)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)  # it is down: this one never got there
            except aiohttp.ClientError:
                self.died += 1


async def die_at(member: Member, point: str, passes: int, sender: OnceSender[Any]) -> int:
    """Let the process die at a failpoint; return how many requests had died before the process that this kills was started."""
    # A fresh process has the failpoint in its environment; what kills the old one is one more kill anywhere.
    member.kill()
    await member.wait_killed()
    before = sender.died
    await member.start(f"{point}:{passes}")
    await member.wait_killed()
    return before


async def left_for_the_destination(member: Member) -> list[Delivery]:
    """Return what the log holds for it after a stop; nobody else may have left anything behind."""
    log = SqliteLog("buffer", SqliteConfig(), Context(SystemClock(), Metrics(), member.data_dir, "m1", "run"))
    await log.open(None)
    try:
        held = await log.read(AWAY, 1 << 30)
        for books in await log.group_books():
            assert books.balanced, books
            assert books.group == AWAY or not books.held, f"{books} was left behind by a stop"
        return held
    finally:
        await log.close(time.monotonic() + PATIENCE_S)
