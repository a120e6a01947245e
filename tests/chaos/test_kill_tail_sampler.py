"""SIGKILL of a process that samples whole traces while their spans come in by OTLP: each trace is kept whole or left out whole, each span
comes out once, and none that was acknowledged is lost.

The destination is away all the time, so everything that was sent on stays in the log and is read from there at the end: no repeat of an
exporter can hide or fake one of the sampler. Traces are spread over several requests, and blocks hold traces that are decided at different
times, so kills fall between the parts of a block. A kill counts only in traffic: a request must have died with the process, or spans
must wait in the log for a decision. The seed is printed; the same seed gives the same rounds.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path

import aiohttp
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.clock import SystemClock
from emp_pipe.component import Context
from emp_pipe.self_metrics import Metrics
from tests.chaos.fleet import ANYWHERE, EXTRA_ROUNDS, PATIENCE_S, Books, Member, seeded
from tests.support.command import free_port

POINTS = ("derive.commit", "derive.committed", "log.append", "log.commit")
HALF = 1 << 55
SPANS = 4
"""Of a request, each of another trace."""


class Sender:
    """Posts spans of traces that are under way; knows which requests were acknowledged."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port = port
        self._chance = chance
        self._traces = deque((chance.randbytes(16) for _ in range(12)), maxlen=12)
        self._next = 0
        self._stopped = False
        self.trace_of: dict[int, bytes] = {}
        self.errors: set[bytes] = set()
        self.acked: set[int] = set()
        self.died = 0
        """Requests whose connection broke while they waited for an answer."""

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session, asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(self._send_all(session))

    def stop(self) -> None:
        self._stopped = True

    async def wait_acked(self, more: int) -> None:
        wanted = len(self.acked) + more
        async with asyncio.timeout(PATIENCE_S):
            while len(self.acked) < wanted:  # noqa: ASYNC110 (counted by several tasks)
                await asyncio.sleep(0.01)

    async def _send_all(self, session: aiohttp.ClientSession) -> None:
        while not self._stopped:
            numbers, request = self._request()
            try:
                url = f"http://127.0.0.1:{self._port}/v1/traces"
                headers = {"Content-Type": "application/x-protobuf"}
                async with session.post(url, data=request.SerializeToString(), headers=headers) as answer:
                    if answer.status == 200:
                        self.acked.update(numbers)
                    await asyncio.sleep(0.01)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)  # it is down: this one never got there
            except aiohttp.ClientError:
                self.died += 1

    def _request(self) -> tuple[range, ExportTraceServiceRequest]:
        numbers = range(self._next, self._next + SPANS)
        self._next += SPANS
        request = ExportTraceServiceRequest()
        spans = request.resource_spans.add().scope_spans.add().spans
        for number, trace in zip(numbers, self._chance.sample(list(self._traces), SPANS), strict=True):
            failed = self._chance.random() < 0.03
            self.trace_of[number] = trace
            if failed:
                self.errors.add(trace)
            status = Status(code=Status.STATUS_CODE_ERROR) if failed else None
            span_id = (number + 1).to_bytes(8, "big")
            spans.append(
                Span(trace_id=trace, span_id=span_id, parent_span_id=b"p" * 8, name="s", start_time_unix_nano=time.time_ns(), status=status)
            )
        self._traces.append(self._chance.randbytes(16))
        return numbers, request


def write_config(directory: Path) -> tuple[Member, int]:
    otlp_port, http_port = free_port(), free_port()
    config = {
        "data_dir": str(directory / "data"),
        "http": {"listen": f"127.0.0.1:{http_port}"},
        "shutdown": {"deadline_s": 20},
        "receivers": {"otlp_http": {"listen": f"127.0.0.1:{otlp_port}"}},
        "processors": {
            "tail_sample": {"policies": [{"type": "error"}, {"type": "probability", "percent": 50}], "decision_wait_s": 0.4},
        },
        "exporters": {"otlp_http/away": {"endpoint": f"http://127.0.0.1:{free_port()}", "retry_initial_s": 5}},
    }
    file = directory / "emp.yaml"
    file.write_text(yaml.safe_dump(config))
    return Member("sampler", file, http_port, directory / "sampler.log"), otlp_port


async def books_of(member: Member) -> dict[str, int]:
    return Books.parse(await asyncio.to_thread(member._get, "/metrics")).groups["traces.in", "tail_sample"]


async def wait_for_books(member: Member, enough: Callable[[dict[str, int]], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not enough(await books_of(member)):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)


async def kill_in_traffic(member: Member, at: str, sender: Sender, chance: random.Random) -> None:
    """Let the process die, start it again, and wait until it has decided more than before."""
    before = sender.died
    if at == ANYWHERE:
        await asyncio.sleep(chance.random() * 0.5)
        member.kill()
        await member.wait_killed()
    else:
        # A fresh process has the failpoint in its environment; what kills the old one is one more kill anywhere.
        member.kill()
        await member.wait_killed()
        before = sender.died
        await member.start(f"{at}:{chance.randint(1, 12)}")
        await member.wait_killed()
    await member.start()
    await member.wait_ready()
    books = await books_of(member)
    assert books["held"] or sender.died > before, f"it died at {at} while nothing was under way: the kill proves nothing"
    await wait_for_books(member, lambda now: now["acked"] + now["skipped"] > books["acked"] + books["skipped"] + 200)


async def spans_left(data_dir: Path) -> list[Span]:
    """Return the spans that the log holds for the exporter, after a stop."""
    log = SqliteLog("buffer", SqliteConfig(), Context(SystemClock(), Metrics(), data_dir, "m1", "run"))
    await log.open(None)
    try:
        held = await log.read("otlp_http/away", 1 << 30)
        for books in await log.group_books():
            assert books.balanced, books
        requests = [ExportTraceServiceRequest.FromString(delivery.block.payload("none")) for delivery in held]
        assert all(delivery.block.decided for delivery in held)
        return [span for one in requests for group in one.resource_spans for scope in group.scope_spans for span in scope.spans]
    finally:
        await log.close(time.monotonic() + PATIENCE_S)


async def test_sigkill_between_the_parts_of_traces_keeps_each_whole_and_sends_none_twice(tmp_path: Path) -> None:
    chance = seeded()
    member, port = write_config(tmp_path)
    sender = Sender(port, chance)
    rounds = [*POINTS, *POINTS, ANYWHERE, ANYWHERE, *(chance.choice((*POINTS, ANYWHERE)) for _ in range(EXTRA_ROUNDS))]
    chance.shuffle(rounds)
    try:
        await member.start()
        await member.wait_ready()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.run())
            await sender.wait_acked(50)
            for at in rounds:
                books = dict(await books_of(member))
                print(f"kill at {at}: {len(sender.acked)} acked, {sender.died} requests died; the sampler's books: {books}")
                await kill_in_traffic(member, at, sender, chance)
            sender.stop()
        await wait_for_books(member, lambda now: not now["held"])
        await member.stop()
    finally:
        if member.process is not None and member.process.returncode is None:
            member.kill()
            await member.process.wait()
    sent = Counter(int.from_bytes(span.span_id, "big") - 1 for span in await spans_left(tmp_path / "data"))
    check(sender, sent)
    print(f"{len(sender.acked)} acked, {sender.died} requests died, {len(sent)} spans kept")


def check(sender: Sender, sent: Counter[int]) -> None:
    twice = {number: count for number, count in sent.items() if count > 1}
    assert not twice, f"{len(twice)} spans were sent twice"
    verdicts: dict[bytes, set[bool]] = defaultdict(set)
    for number in sender.acked:
        verdicts[sender.trace_of[number]].add(number in sent)
    partial = [trace.hex() for trace, kept in verdicts.items() if len(kept) > 1]
    assert not partial, f"{len(partial)} traces were sent in part, such as {partial[0]}"
    for trace, kept in verdicts.items():
        by_chance = int.from_bytes(trace[9:], "big") >= HALF
        assert kept == {True} or not by_chance, f"{trace.hex()} was acknowledged, is kept by chance, and was lost"
        assert kept == {False} or by_chance or trace in sender.errors, f"{trace.hex()} was kept for nothing"
    whole = [trace for trace in sender.errors & verdicts.keys() if verdicts[trace] == {True}]
    assert len(whole) > len(sender.errors & verdicts.keys()) // 2, "errors decide their traces at once: most must have been in time"
    assert {True, False} == {kept for found in verdicts.values() for kept in found}
