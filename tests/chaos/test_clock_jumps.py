"""A wall clock that is set while everything runs, by an hour or a year, forward or back: nothing acknowledged is lost, nothing waits for
longer or gives up sooner, and what derives decides and adds up as before. With the real command; the shim is `wall_clock.py`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path
from random import Random

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.chaos.chain import QUICK, Chain, assert_at_least_once, cleaned_up, in_redis
from tests.chaos.fleet import PATIENCE_S, Member, member, seeded
from tests.chaos.witness import Accepted, Sink
from tests.support.command import free_port
from tests.support.otlp_endpoint import Answer, OtlpEndpoint
from tests.support.otlp_strict import Received
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.wall_clock import WallClock, needs_compiler

pytestmark = needs_compiler

HOUR_S, YEAR_S = 3600.0, 365 * 86_400.0
JUMPS_S = [HOUR_S, -HOUR_S, YEAR_S, -YEAR_S]


async def ages_s(one: Member) -> list[float]:
    text = await asyncio.to_thread(one._get, "/metrics")
    return [float(value) for value in re.findall(r"^emp_pipe_(?:group_lag|buffer_oldest_age)_seconds(?:{.*})? (\S+)$", text, re.MULTILINE)]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=needs_redis)])
async def test_a_clock_that_is_set_under_traffic_loses_and_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    chance, sink, direct, clock = seeded(), Sink(), Accepted(), WallClock(tmp_path)
    with ExitStack() as stack:
        server = None
        if kind == "redis":
            with monkeypatch.context() as patch:  # one machine: Redis' clock is set with the others
                for name, value in clock.variables.items():
                    patch.setenv(name, value)
                server = stack.enter_context(RedisServer(maxmemory_bytes=512 << 20))
        async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint, OtlpEndpoint(keep=False, on_received=direct.take) as second:
            # a best-effort destination gives up what is older than a minute: after a jump that must still be nothing
            beside = {"endpoint": second.url, **QUICK, "required": False, "quota_age_s": 60}
            chain = Chain.configure(
                tmp_path, endpoint.url, {"otlp_http/direct": beside}, in_redis(server.url) if server is not None else None
            )
            for one in (chain.edge, chain.central):
                one.variables = clock.variables
            sender = chain.sender(chance.getrandbits(32))
            jumps = chance.sample(JUMPS_S, len(JUMPS_S))
            async with cleaned_up(chain):
                await chain.start()
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(sender.run())
                    for by_s in jumps:
                        await sender.wait_acked(sender.acked_records + chance.randint(100, 300))
                        second.script(Answer(status=503, retry_after="1"), Answer(status=503))
                        clock.set_by(by_s)
                        # a date by a clock that is right, once ours is not
                        second.script(Answer(status=429, retry_after=formatdate(time.time() + 2, usegmt=True)))
                        async with asyncio.timeout(PATIENCE_S):
                            await sender.wait_acked(sender.acked_records + 300)
                        await second.wait_until(lambda: not second.scripted, PATIENCE_S)
                        for one in (chain.edge, chain.central):
                            assert max(await ages_s(one)) < PATIENCE_S, f"{by_s:+.0f} s: ages jumped with the clock"
                        print(f"{by_s:+.0f} s: {sender.acked_records} acked")
                    sender.stop_sending()
                    async with asyncio.timeout(PATIENCE_S):
                        await sending
                _, central = await chain.check(sender, sink, endpoint)
                for group, terms in central.groups.items():
                    assert not terms["dropped"], f"{group} gave something up: {dict(terms)}"
                assert_at_least_once(direct, sink, f"central's log in {kind}", 0)
                await chain.stop()


class Spans:
    """What came out of a process that samples and counts."""

    def __init__(self) -> None:
        self.spans: Counter[bytes] = Counter()
        self.calls = 0
        self.windows: list[tuple[int, int]] = []

    def take(self, received: Received) -> None:
        message = received.message
        if received.signal == "traces":
            self.spans.update(span.span_id for one in message.resource_spans for scope in one.scope_spans for span in scope.spans)
            return
        for metric in (metric for one in message.resource_metrics for scope in one.scope_metrics for metric in scope.metrics):
            if metric.name == "traces.span.metrics.calls":
                self.calls += sum(point.as_int for point in metric.sum.data_points)
                self.windows += [(point.start_time_unix_nano, point.time_unix_nano) for point in metric.sum.data_points]


@pytest.mark.parametrize("by_s", JUMPS_S)
async def test_a_trace_whose_clock_is_set_between_its_spans_is_still_decided_whole(tmp_path: Path, by_s: float) -> None:
    chance, out, clock, port = seeded(), Spans(), WallClock(tmp_path), free_port()
    async with OtlpEndpoint(keep=False, on_received=out.take) as endpoint:
        parts = {
            "receivers": {"otlp_http": {"listen": f"127.0.0.1:{port}"}},
            "processors": {"red_metrics": {"interval_s": 0.2}, "tail_sample": {"policies": [{"type": "error"}], "decision_wait_s": 60}},
            "exporters": {"otlp_http/out": {"endpoint": endpoint.url, **QUICK}},
        }
        one = member(tmp_path, "one", parts)
        one.variables = clock.variables
        ids = [chance.randbytes(16) for _ in range(20)]
        try:
            await one.start()
            await one.wait_ready()
            first = await post(port, ids, clock, chance, failed=False)
            await wait_for_open_traces(one, len(ids))
            clock.set_by(by_s)
            await asyncio.sleep(1.5)  # ticks at the new time
            assert not out.spans, "decided before its time"
            second = await post(port, ids, clock, chance, failed=True)
            await endpoint.wait_until(lambda: out.spans.keys() >= first | second and out.calls >= 2 * len(ids), PATIENCE_S)
            assert set(out.spans.values()) == {1}
            assert out.calls == 2 * len(ids)
            assert all(start <= end for start, end in out.windows)
            assert max(end - start for start, end in out.windows) < 60 * 10**9, "a window is as long as it was"
            assert abs(out.windows[-1][1] - clock.unix_nano()) < 60 * 10**9, "a window ends by the wall clock"
            await one.stop()
        finally:
            await one.end()


async def post(port: int, ids: list[bytes], clock: WallClock, chance: Random, *, failed: bool) -> set[bytes]:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    status = Status(code=Status.STATUS_CODE_ERROR) if failed else None
    for trace in ids:
        now, span = clock.unix_nano(), chance.randbytes(8)
        spans.add(
            trace_id=trace, span_id=span, parent_span_id=b"p" * 8, name="s", start_time_unix_nano=now, end_time_unix_nano=now, status=status
        )
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://127.0.0.1:{port}/v1/traces", data=request.SerializeToString(), headers={"Content-Type": "application/x-protobuf"}
        ) as answer,
    ):
        assert answer.status == 200
    return {span.span_id for span in spans}


async def wait_for_open_traces(one: Member, count: int) -> None:
    line = f'emp_pipe_tail_sample_open_traces{{component="tail_sample"}} {count}.0'
    async with asyncio.timeout(PATIENCE_S):
        while line not in await asyncio.to_thread(one._get, "/metrics"):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
