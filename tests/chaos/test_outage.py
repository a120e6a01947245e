"""Every destination away for long, at a steady rate of records: memory is bounded, nothing is lost, and all drains when they are back.

The short form is of seconds; `CHAOS_OUTAGE_S=1800 make chaos` is the half hour. What it took is printed.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path
from typing import Any

from tests.chaos.fleet import PATIENCE_S, Member, member, seeded
from tests.chaos.test_kill_edge_and_central import Sink
from tests.support.acked_sender import AckedSender
from tests.support.command import free_port
from tests.support.otlp_endpoint import OtlpEndpoint

OUTAGE_S = float(os.environ.get("CHAOS_OUTAGE_S") or (120 if "CHAOS_ROUNDS" in os.environ else 10))
RECORDS_PER_S = 5_000
MOST_GROWTH_KB = 32 << 10
"""While nobody takes anything, however long."""
MOST_CATCHING_UP_KB = 224 << 10
"""Two destinations with 16 requests of 3.5 MiB under way each, twice: as read and as merged. How long they were away does not matter."""
QUICK = {"retry_initial_s": 0.05, "retry_max_s": 1.0}


def resident_kb(one: Member) -> int:
    assert one.process is not None
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{one.process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


class PacedSender(AckedSender):
    """Sends no faster than a rate."""

    async def run(self) -> None:
        self._began_s = time.monotonic()
        await super().run()

    def _new_chunk(self, connection: int) -> str:
        ahead_s = self._next / RECORDS_PER_S - (time.monotonic() - self._began_s)
        self.pace_s = min(max(ahead_s, 0.001), 0.5)
        return super()._new_chunk(connection)


class Rate(Sink):
    """Counts what each destination got; big runs do not keep every number twice."""

    def __init__(self) -> None:
        super().__init__()
        self.last_s = 0.0

    def take(self, received: Any) -> None:
        super().take(received)
        self.last_s = time.monotonic()


async def test_a_long_outage_of_every_destination_takes_bounded_memory_and_loses_nothing(tmp_path: Path) -> None:
    seeded()
    port, ports = free_port(), [free_port(), free_port()]
    exporters = {f"otlp_http/{number}": {"endpoint": f"http://127.0.0.1:{to}", **QUICK} for number, to in enumerate(ports)}
    one = member(tmp_path, "one", {"receivers": {"forward": {"listen": f"127.0.0.1:{port}"}}, "exporters": exporters})
    sender = PacedSender(port, records_per_chunk=100)
    sinks = [Rate() for _ in ports]
    try:
        await one.start()
        await one.wait_ready()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(sender.run())
            await sender.wait_acked(5_000)
            began_s, before_kb, most_kb, acked = time.monotonic(), resident_kb(one), 0, len(sender.acked)
            while time.monotonic() < began_s + OUTAGE_S:
                await asyncio.sleep(min(1.0, OUTAGE_S / 10))
                most_kb = max(most_kb, resident_kb(one))
            took_s = time.monotonic() - began_s
            outage_kb = most_kb
            rate = (len(sender.acked) - acked) / took_s
            held = await one.held_records()
            assert held >= 2 * acked, "nothing could leave"
            endpoints = [OtlpEndpoint(port=to, keep=False, on_received=sink.take) for to, sink in zip(ports, sinks, strict=True)]
            back_s = time.monotonic()
            async with endpoints[0], endpoints[1]:
                while not sending.done() and min(len(sink.arrived) for sink in sinks) < len(sender.acked) - 2 * RECORDS_PER_S:
                    await asyncio.sleep(0.1)
                    most_kb = max(most_kb, resident_kb(one))
                    assert time.monotonic() < back_s + PATIENCE_S + 2 * OUTAGE_S, f"it does not catch up: {await one.held_records()} held"
                recovered_s = time.monotonic() - back_s
                sender.stop_sending()
                async with asyncio.timeout(PATIENCE_S):
                    await sending
                books = await one.drained_books()
                books.assert_balanced()
                for number, (sink, endpoint) in enumerate(zip(sinks, endpoints, strict=True)):
                    lost = sender.acked - sink.arrived.keys()
                    assert not lost, f"destination {number}: {len(lost)} acknowledged records never arrived"
                    assert not endpoint.violations, endpoint.violations[:3]
        again = sum(sink.arrived.total() - len(sink.arrived) for sink in sinks)
        timed_out = one.log_file.read_text(errors="replace").count("no answer within")
        print(
            f"{took_s:.0f} s without destinations at {rate:.0f} records/s: {held} held, {before_kb} KB resident before, "
            f"{outage_kb} KB at most without them, {most_kb} KB while it caught up; "
            f"caught up in {recovered_s:.1f} s while more came; {len(sender.acked)} acked, 0 missing, "
            f"{again} came again, {timed_out} said to have timed out"
        )
        assert not again, f"{again} records came again, and nothing was killed"
        assert outage_kb - before_kb < MOST_GROWTH_KB, "memory grows with the outage"
        assert most_kb - before_kb < MOST_CATCHING_UP_KB, "memory grows with the backlog"
        await one.stop()
    finally:
        await one.end()
