"""What comes twice at a destination: nothing while nobody is killed, and nothing when emp-pipe is told to stop.

OTLP knows no repeats, so each one counts there. What a SIGKILL repeats is counted and reported by `test_kill_edge_and_central.py`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.chaos.fleet import PATIENCE_S, Member, member, seeded
from tests.chaos.test_kill_edge_and_central import Sink
from tests.support.acked_sender import AckedSender
from tests.support.command import free_port
from tests.support.otlp_endpoint import Answer, OtlpEndpoint

STOPS = 5


class OneAtATime(OtlpEndpoint):
    """Works requests off one after another, and takes in the end also those that nobody waits for any more."""

    work_s = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._working = asyncio.Lock()

    async def _answer(self, request: web.Request, wire: bytes, answer: Answer | None) -> web.StreamResponse:
        async with self._working:
            await asyncio.sleep(self.work_s)
            return await super()._answer(request, wire, answer)


def one_process(directory: Path, port: int, sink_url: str, **settings: Any) -> Member:
    exporter = {"endpoint": sink_url, "retry_initial_s": 0.05, "retry_max_s": 0.5, **settings}
    receiver = {"listen": f"127.0.0.1:{port}", "detect_duplicates": "all"}
    return member(directory, "one", {"receivers": {"forward": receiver}, "exporters": {"otlp_http/sink": exporter}})


async def test_a_backlog_reaches_a_slow_destination_once_after_an_outage_without_any_kill(tmp_path: Path) -> None:
    port, sink_port, sink = free_port(), free_port(), Sink()
    # Twelve requests beside each other would have to wait longer than one may take.
    one = one_process(tmp_path, port, f"http://127.0.0.1:{sink_port}", timeout_s=6, max_request_bytes=65_536, max_concurrency=32)
    sender = AckedSender(port, records_per_chunk=100, window_chunks=16)
    try:
        await one.start()
        await one.wait_ready()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(sender.run())
            await sender.wait_acked(20_000)
            sender.stop_sending()
            async with asyncio.timeout(PATIENCE_S):
                await sending
        async with OneAtATime(port=sink_port, keep=False, on_received=sink.take) as endpoint:
            await endpoint.wait_until(lambda: sender.acked <= sink.arrived.keys(), 2 * PATIENCE_S)
            (await one.drained_books()).assert_balanced()
            repeated = sink.arrived.total() - len(sink.arrived)
            print(f"{len(sender.acked)} acked, {endpoint.requests} requests, {endpoint.most_in_flight} at most beside each other")
            assert endpoint.most_in_flight > 1, "one at a time would prove nothing"
            assert not repeated, f"{repeated} records came again, and nothing was killed"
            await one.stop()
    finally:
        await one.end()


async def test_being_told_to_stop_repeats_nothing_at_the_destination(tmp_path: Path) -> None:
    chance = seeded()
    port, sink = free_port(), Sink()
    async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
        one = one_process(tmp_path, port, endpoint.url)
        sender = AckedSender(port)
        try:
            await one.start()
            await one.wait_ready()
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(sender.run())
                for _ in range(STOPS):
                    endpoint.script(*[Answer(delay_s=chance.random() * 0.2) for _ in range(20)])
                    await sender.wait_acked(sender.acked_records + chance.randint(200, 1_000))
                    await one.stop()
                    await one.start()
                    await one.wait_ready()
                sender.stop_sending()
                async with asyncio.timeout(PATIENCE_S):
                    await sending
            await endpoint.wait_until(lambda: sender.acked <= sink.arrived.keys(), PATIENCE_S)
            (await one.drained_books()).assert_balanced()
            await one.stop()
        finally:
            await one.end()
    repeated = sink.arrived.total() - len(sink.arrived)
    print(f"{len(sender.acked)} acked, {STOPS} stops, {repeated} repeated")
    assert not repeated, f"{repeated} of {len(sender.acked)} records came again after {STOPS} stops in order"
