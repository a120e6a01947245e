"""SIGKILL of edge and central while a client sends with acks: every acknowledged record is at the sink, and the books balance.

Each round kills one process at one of the places where order is a promise (`failpoints.py`), or at a random moment. A kill counts only in
traffic: the round asserts that something unacknowledged was on its way. The seed is printed; the same seed gives the same rounds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.chaos.fleet import ANYWHERE, EXTRA_ROUNDS, PATIENCE_S, Fleet, kill_in_traffic, seeded
from tests.support.acked_sender import AckedSender
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_strict import Received

POINTS = ("log.append", "log.commit", "delivery.send", "pipeline.drain")


class Sink:
    """Counts how often each sequence number arrived."""

    def __init__(self) -> None:
        self.arrived: Counter[int] = Counter()

    def take(self, received: Received) -> None:
        if received.status != 200:
            return
        for resource in received.message.resource_logs:
            for scope in resource.scope_logs:
                for row in scope.log_records:
                    for attribute in row.attributes:
                        if attribute.key == "sequence":
                            self.arrived[attribute.value.int_value] += 1


async def test_sigkill_of_edge_and_central_loses_nothing_acknowledged(tmp_path: Path) -> None:
    chance = seeded()
    sink = Sink()
    async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
        fleet = Fleet.configure(tmp_path, endpoint.url)
        sender = AckedSender(fleet.edge_port)
        rounds = [(member, point) for member in (fleet.edge, fleet.central) for point in (*POINTS, ANYWHERE)]
        rounds += [(chance.choice((fleet.edge, fleet.central)), chance.choice((*POINTS, ANYWHERE))) for _ in range(EXTRA_ROUNDS)]
        chance.shuffle(rounds)
        try:
            await fleet.central.start()
            await fleet.edge.start()
            await fleet.edge.wait_ready()
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(sender.run())
                await sender.wait_acked(200)
                for member, point in rounds:
                    print(f"kill {member.name} at {point}: {len(sender.acked)} acked, {sender.unacked_records} in flight")
                    await kill_in_traffic(member, point, sender, chance, fleet.edge)
                    # Something must get through between two kills, or they all hit the same few records.
                    await sender.wait_acked(len(sender.acked) + 100)
                sender.stop_sending()
                async with asyncio.timeout(PATIENCE_S):
                    await sending
            await endpoint.wait_until(lambda: sender.acked <= sink.arrived.keys(), PATIENCE_S)
            edge_books, central_books = await fleet.edge.drained_books(), await fleet.central.drained_books()
            await fleet.edge.stop()
            await fleet.central.stop()
        finally:
            for member in (fleet.edge, fleet.central):
                await member.end()
        lost = sender.acked - sink.arrived.keys()
        assert not lost, f"{len(lost)} acknowledged records never arrived, such as {sorted(lost)[:5]}"
        assert not endpoint.violations, endpoint.violations[:3]
        edge_books.assert_balanced()
        central_books.assert_balanced()
        assert len(sink.arrived) == edge_books.appended == central_books.appended, "edge → central repeated or lost a record"
        repeated = sum(count - 1 for count in sink.arrived.values())
        print(
            f"{len(sender.acked)} acked, {len(sink.arrived)} arrived, {repeated} repeated at the sink; books {dict(edge_books.receivers)}"
        )
