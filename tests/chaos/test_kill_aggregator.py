"""SIGKILL of a process that counts spans and adds metrics up, while OTLP comes in: what was acknowledged is in the log once, to the unit.

The destination is away all the time, so everything that is derived stays in the log and is read from there at the end: no repeat of an
exporter can hide or fake one of the derivers. A request without an answer may have been kept or not, but never in part and never twice.
A kill counts only in traffic: a request must have died with the process. The seed is printed; the same seed gives the same rounds.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path

import aiohttp
import yaml
from google.protobuf.message import Message

from emp_pipe._core import Block
from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.clock import SystemClock
from emp_pipe.component import Context
from emp_pipe.self_metrics import Metrics
from tests.chaos.fleet import PATIENCE_S, Member
from tests.support.command import free_port
from tests.support.metrics import labels_of, point, points_in, request, sum_of, value_of
from tests.support.otlp_post import spans

POINTS = ("derive.commit", "derive.committed", "log.append", "log.commit")
ANYWHERE = "anywhere"
EXTRA_ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "0"))
SPANS = 3


class Sender:
    """Posts numbered requests of metrics and of spans; each number is a stream of its own, and all are added to one total as well."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port = port
        self._chance = chance
        self._next = 0
        self._stopped = False
        self.values: dict[int, int] = {}
        self.acked: set[tuple[str, int]] = set()
        self.died = 0
        """Requests whose connection broke while they waited for an answer."""

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session, asyncio.TaskGroup() as tasks:
            for signal in ("metrics", "traces"):
                for _ in range(3):
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
            number, self._next = self._next, self._next + 1
            self.values[number] = self._chance.randint(1, 1000)
            try:
                url = f"http://127.0.0.1:{self._port}/v1/{signal}"
                headers = {"Content-Type": "application/x-protobuf"}
                async with session.post(url, data=self._body(signal, number).SerializeToString(), headers=headers) as answer:
                    if answer.status == 200:
                        self.acked.add((signal, number))
                    else:
                        await asyncio.sleep(0.05)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)  # it is down: this one never got there
            except aiohttp.ClientError:
                self.died += 1

    def _body(self, signal: str, number: int) -> Message:
        now = time.time_ns()
        if signal == "traces":
            return spans([f"op {number}"] * SPANS, self._chance, now_unix_nano=now)
        value = self.values[number]
        halves = [point(value // 2, number=number), point(value - value // 2, number=number)]
        return request(sum_of("numbered", *halves), sum_of("total", point(value)))


def write_config(directory: Path) -> tuple[Member, int]:
    otlp_port, http_port = free_port(), free_port()
    config = {
        "data_dir": str(directory / "data"),
        "http": {"listen": f"127.0.0.1:{http_port}"},
        "shutdown": {"deadline_s": 20},
        "receivers": {"otlp_http": {"listen": f"127.0.0.1:{otlp_port}"}},
        "processors": {
            "red_metrics": {"interval_s": 0.05, "max_span_names": 1_000_000},
            "aggregate": {"interval_s": 0.15, "max_streams": 1_000_000},
        },
        "exporters": {"otlp_http/away": {"endpoint": f"http://127.0.0.1:{free_port()}", "retry_initial_s": 5}},
    }
    file = directory / "emp.yaml"
    file.write_text(yaml.safe_dump(config))
    return Member("aggregator", file, http_port, directory / "aggregator.log"), otlp_port


async def kill_in_traffic(member: Member, at: str, sender: Sender, chance: random.Random) -> None:
    before = sender.died
    if at == ANYWHERE:
        await sender.wait_acked(chance.randint(10, 60))
        await asyncio.sleep(chance.random() * 0.1)
        member.kill()
        await member.wait_killed()
    else:
        # A fresh process has the failpoint in its environment; what kills the old one is one more kill anywhere.
        member.kill()
        await member.wait_killed()
        before = sender.died
        await member.start(f"{at}:{chance.randint(3, 20)}")
        await member.wait_killed()
    async with asyncio.timeout(PATIENCE_S):
        while sender.died == before:  # noqa: ASYNC110 (the sender sees its connection break a moment later)
            await asyncio.sleep(0.01)
    await member.start()
    await member.wait_ready()


async def blocks_left(data_dir: Path) -> list[Block]:
    """Return what the log holds for the exporter, after a stop."""
    log = SqliteLog("buffer", SqliteConfig(), Context(SystemClock(), Metrics(), data_dir, "m1", "run"))
    await log.open(None)
    try:
        held = await log.read("otlp_http/away", 1 << 30)
        for books in await log.group_books():
            assert books.balanced, books
            assert books.group == "otlp_http/away" or not books.held, f"{books} was left behind by a stop"
        return [delivery.block for delivery in held if delivery.topic == "metrics"]
    finally:
        await log.close(time.monotonic() + PATIENCE_S)


async def test_sigkill_neither_loses_nor_doubles_a_count(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
    print(f"seed {seed}: run with SEED={seed} to repeat")
    chance = random.Random(seed)
    member, port = write_config(tmp_path)
    sender = Sender(port, chance)
    rounds = [*POINTS, ANYWHERE, *(chance.choice((*POINTS, ANYWHERE)) for _ in range(EXTRA_ROUNDS))]
    chance.shuffle(rounds)
    try:
        await member.start()
        await member.wait_ready()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.run())
            await sender.wait_acked(50)
            for at in rounds:
                print(f"kill at {at}: {len(sender.acked)} acked, {sender.died} died")
                await kill_in_traffic(member, at, sender, chance)
                await sender.wait_acked(30)
            sender.stop()
        await member.stop()
    finally:
        if member.process is not None and member.process.returncode is None:
            member.kill()
            await member.process.wait()
    blocks = await blocks_left(tmp_path / "data")
    numbered: Counter[int] = Counter()
    for one in points_in(blocks, "numbered"):
        numbered[labels_of(one)["number"]] += int(value_of(one) or 0)
    wrong = {number: found for number, found in numbered.items() if found != sender.values[number]}
    assert not wrong, f"counted in part or twice: {wrong}"
    lost = {number for signal, number in sender.acked if signal == "metrics"} - numbered.keys()
    assert not lost, f"{len(lost)} acknowledged requests never came out, such as {sorted(lost)[:5]}"
    total = sum(int(value_of(one) or 0) for one in points_in(blocks, "total"))
    assert total == sum(numbered.values()), "the total is not the sum of its parts"
    calls: Counter[str] = Counter()
    for one in points_in(blocks, "traces.span.metrics.calls"):
        calls[labels_of(one)["span.name"]] += int(value_of(one) or 0)
    assert set(calls.values()) == {SPANS}, "a span was counted twice, or not at all"
    lost_spans = {f"op {number}" for signal, number in sender.acked if signal == "traces"} - calls.keys()
    assert not lost_spans, f"{len(lost_spans)} acknowledged requests of spans were not counted"
    print(f"{len(sender.acked)} acked, {sender.died} without an answer, {len(numbered)} of metrics and {len(calls)} of spans came out")
