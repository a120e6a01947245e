"""SIGKILL of a process that samples whole traces while their spans come in by OTLP: each trace is kept whole or left out whole, each span
comes out once, and none that was acknowledged is lost.

Traces are spread over several requests, and blocks hold traces that are decided at different times, so kills fall between the parts of a
block. A kill counts only in traffic: a request must have died with the process, or spans must wait in the log for a decision. The seed is
printed; the same seed gives the same rounds.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.chaos.derivers import POINTS, OnceSender, deriving, die_at, left_for_the_destination
from tests.chaos.fleet import ANYWHERE, EXTRA_ROUNDS, PATIENCE_S, Member, seeded

HALF = 1 << 55
SPANS = 4
"""Of a request, each of another trace."""
PROCESSORS = {"tail_sample": {"policies": [{"type": "error"}, {"type": "probability", "percent": 50}], "decision_wait_s": 0.4}}


class Sender(OnceSender[int]):
    """Sends spans of traces that are under way; knows which spans were acknowledged."""

    pace_s = 0.01

    def __init__(self, port: int, chance: random.Random) -> None:
        super().__init__(port, chance, ["traces"] * 4)
        self._traces = deque((chance.randbytes(16) for _ in range(12)), maxlen=12)
        self._next = 0
        self.trace_of: dict[int, bytes] = {}
        self.errors: set[bytes] = set()

    def request(self, signal: str) -> tuple[range, ExportTraceServiceRequest]:
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


async def books_of(member: Member) -> dict[str, int]:
    return (await member.books()).groups["traces.in", "tail_sample"]


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
        before = await die_at(member, at, chance.randint(1, 12), sender)
    await member.start()
    await member.wait_ready()
    books = await books_of(member)
    assert books["held"] or sender.died > before, f"it died at {at} while nothing was under way: the kill proves nothing"
    await wait_for_books(member, lambda now: now["acked"] + now["skipped"] > books["acked"] + books["skipped"] + 200)


async def spans_left(member: Member) -> list[Span]:
    """Return the spans that the log holds for the exporter, after a stop."""
    held = await left_for_the_destination(member)
    requests = [ExportTraceServiceRequest.FromString(delivery.block.payload("none")) for delivery in held]
    assert all(delivery.block.decided for delivery in held)
    return [span for one in requests for group in one.resource_spans for scope in group.scope_spans for span in scope.spans]


async def test_sigkill_between_the_parts_of_traces_keeps_each_whole_and_sends_none_twice(tmp_path: Path) -> None:
    chance = seeded()
    member, port = deriving(tmp_path, PROCESSORS)
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
        await member.end()
    sent = Counter(int.from_bytes(span.span_id, "big") - 1 for span in await spans_left(member))
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
