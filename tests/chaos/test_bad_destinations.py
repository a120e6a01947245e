"""Destinations that misbehave in every way, good ones beside them, and SIGKILL in the middle: the good ones go on, and at the end each has
all that was acknowledged, or it is a dead letter with a reason. With the real command; what single answers mean is in
`tests/contract/test_otlp_destinations.py`.

    Forward client → one process ─┬→ OTLP/HTTP, good          ├→ OTLP/gRPC, bad
                                  ├→ OTLP/HTTP, bad           └→ Forward to another emp-pipe, over a bad connection
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.fleet import KEY, PATIENCE_S, Member, member, seeded
from tests.chaos.test_kill_edge_and_central import Sink
from tests.support.acked_sender import AckedSender
from tests.support.command import free_port
from tests.support.otlp_endpoint import Answer, OtlpEndpoint
from tests.support.otlp_grpc_endpoint import GrpcAnswer, OtlpGrpcEndpoint
from tests.support.tcp_proxy import TcpProxy

QUICK = {"retry_initial_s": 0.05, "retry_max_s": 0.5, "timeout_s": 2}
NEVER_S = 3600.0


@dataclass(frozen=True)
class Bad:
    """How destinations answer while they are bad. `cut`: connections end all the time; `delay_s`: nothing comes through."""

    http: Answer | None = None
    grpc: GrpcAnswer | None = None
    cut: bool = False
    delay_s: float = 0.0
    refuses_some: bool = False
    """Each request in which one row in a hundred lies is refused whole, and those rows alone become dead letters."""


CASES = {
    "429": Bad(Answer(status=429, retry_after="1"), GrpcAnswer("RESOURCE_EXHAUSTED", retry_info_s=1.0)),
    "503": Bad(Answer(status=503), GrpcAnswer("UNAVAILABLE")),
    "500": Bad(Answer(status=500), GrpcAnswer("INTERNAL")),
    "400": Bad(refuses_some=True),
    "hanging": Bad(Answer(delay_s=NEVER_S), GrpcAnswer(never=True), delay_s=NEVER_S),
    "closing-mid-answer": Bad(Answer(drop="mid"), cut=True),
    "half-accepting": Bad(Answer(rejected=1), GrpcAnswer(rejected=1)),
    "accept-then-reset": Bad(Answer(drop="before"), cut=True),
}


async def cut_again_and_again(proxies: list[TcpProxy]) -> None:
    while True:
        await asyncio.sleep(0.1)
        for proxy in proxies:
            proxy.cut()


def is_one_of_a_hundred(row: Any) -> bool:
    return any(pair.key == "sequence" and pair.value.int_value % 100 == 7 for pair in row.attributes)


async def wait_acked(sender: AckedSender, more: int, one: Member) -> None:
    known = len(sender.acked)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await sender.wait_acked(known + more)
    except TimeoutError:
        raise AssertionError(f"{len(sender.acked) - known} of {more} acknowledged\n{one.tail()}") from None


async def kill(one: Member) -> None:
    one.kill()
    await one.wait_killed()
    await one.start()
    await one.wait_ready()


@pytest.mark.parametrize("name", CASES)
async def test_bad_destinations_lose_nothing_and_delay_no_good_one_through_a_sigkill(tmp_path: Path, name: str) -> None:
    chance, bad = seeded(), CASES[name]
    good, http, grpc, beyond = sinks = [Sink() for _ in range(4)]
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        good_endpoint, http_endpoint, last_endpoint = [
            await enter(OtlpEndpoint(keep=False, on_received=sink.take)) for sink in (good, http, beyond)
        ]
        grpc_endpoint = await enter(OtlpGrpcEndpoint())
        last_port, port = free_port(), free_port()
        proxies = [await enter(TcpProxy(to)) for to in (grpc_endpoint.port, last_port)]
        last = member(
            tmp_path,
            "last",
            {
                "receivers": {"forward": {"listen": f"127.0.0.1:{last_port}", "shared_key": KEY}},
                "exporters": {"otlp_http": {"endpoint": last_endpoint.url, **QUICK}},
            },
        )
        one = member(
            tmp_path,
            "one",
            {
                "receivers": {"forward": {"listen": f"127.0.0.1:{port}", "detect_duplicates": "all"}},
                "exporters": {
                    "otlp_http/good": {"endpoint": good_endpoint.url, **QUICK},
                    "otlp_http/bad": {"endpoint": http_endpoint.url, **QUICK},
                    "otlp_grpc/bad": {"endpoint": f"http://127.0.0.1:{proxies[0].port}", **QUICK},
                    "forward/bad": {"endpoint": f"127.0.0.1:{proxies[1].port}", "shared_key": KEY, "ack_timeout_s": 2, **QUICK},
                },
            },
        )
        for each in (last, one):
            stack.push_async_callback(each.end)
            await each.start()
        for each in (last, one):
            await each.wait_ready()
        sender = AckedSender(port, pace_s=0.01)
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(sender.run())
            await wait_acked(sender, 200, one)
            http_endpoint.always(bad.http)
            grpc_endpoint.always(bad.grpc)
            if bad.refuses_some:
                http_endpoint.refuse_row = grpc_endpoint.refuse_row = is_one_of_a_hundred
            for proxy in proxies:
                proxy.delay_s = bad.delay_s
            cutting = tasks.create_task(cut_again_and_again(proxies)) if bad.cut else None
            for _ in range(2):
                await wait_acked(sender, chance.randint(200, 400), one)
                now = frozenset(sender.acked)
                await good_endpoint.wait_until(lambda now=now: now <= good.arrived.keys(), PATIENCE_S)  # type: ignore[misc]
                await asyncio.sleep(chance.random() * 0.1)
                async with asyncio.timeout(PATIENCE_S):
                    while not sender.unacked_records:  # noqa: ASYNC110 (a kill counts only with data on its way)
                        await asyncio.sleep(0)
                await kill(one)
            await wait_acked(sender, 200, one)
            http_endpoint.always(None)
            grpc_endpoint.always(None)
            if cutting is not None:
                cutting.cancel()
            for proxy in proxies:
                proxy.delay_s = 0.0
                proxy.cut()
            sender.stop_sending()
            async with asyncio.timeout(PATIENCE_S):
                await sending
        books, last_books = await one.drained_books(dead_letters=bad.refuses_some), await last.drained_books()
        books.assert_balanced()
        last_books.assert_balanced()
        for received in grpc_endpoint.received:
            grpc.take(received)
        dead: Counter[str] = Counter()
        for (_, group), terms in books.groups.items():
            dead[group] += terms["dead"]
        for group, sink in zip(("otlp_http/good", "otlp_http/bad", "otlp_grpc/bad", "forward/bad"), sinks, strict=True):
            missing = sender.acked - sink.arrived.keys()
            assert len(missing) <= dead[group], f"{group}: {len(missing)} acknowledged records are neither there nor a dead letter"
            assert not dead[group] or (bad.refuses_some and group in ("otlp_http/bad", "otlp_grpc/bad")), dead
            assert not {number for number in missing if number % 100 != 7}, f"{group}: a row was given up for its neighbour"
            again = sink.arrived.total() - len(sink.arrived)
            print(f"{name}, {group}: {len(sink.arrived)} arrived, {dead[group]} dead, {again} came again")
        if bad.refuses_some:
            assert dead["otlp_http/bad"] > 0
            assert dead["otlp_grpc/bad"] > 0
        assert last_books.appended == beyond.arrived.total() == len(beyond.arrived), "edge → central repeated a record"
        await one.stop()
        await last.stop()
