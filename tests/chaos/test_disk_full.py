"""A disk that becomes full under traffic of all three signals, with everything that derives switched on: receivers wait and acknowledge
nothing, what the log holds drains, and when there is space again everything goes on. The disk is a small tmpfs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.fleet import EXTRA_ROUNDS, PATIENCE_S, seeded
from tests.chaos.hub import Hub, cleaned_up
from tests.chaos.witness import Sink
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.small_disk import small_disk

DISK_BYTES = 48 << 20
REASONS = ("the disk has", "the disk is full", "the disk was full")
ROUNDS = 2 + min(EXTRA_ROUNDS, 20)


@pytest.mark.parametrize("floor_bytes", [0, 4 << 20], ids=["no-floor", "floor"])
async def test_a_full_disk_stops_receivers_and_everything_goes_on_when_there_is_space(tmp_path: Path, floor_bytes: int) -> None:
    chance, sink = seeded(), Sink()
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
            hub = Hub.configure(tmp_path, disk.path / "data", endpoint.url, {"min_free_bytes": floor_bytes})
            sender = hub.sender(chance.getrandbits(32))
            async with cleaned_up(hub):
                await hub.last.start()
                await hub.hub.start()
                await hub.hub.wait_ready()
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(sender.run())
                    for number in range(ROUNDS):
                        await sender.wait_acked(sender.acked_records + 300)
                        disk.fill(leave_bytes=chance.choice((0, 0, 64 << 10, 1 << 20)) if number % 2 else 0)
                        await hub.wait_refusing(*REASONS)
                        if number % 2:  # a restart on the full disk: it serves, refuses, and drains what is there
                            hub.hub.kill()
                            await hub.hub.wait_killed()
                            await hub.hub.start()
                            await hub.wait_refusing(*REASONS)
                            await hub.hub.drained_books()
                        else:
                            disk.fill()  # somebody takes the space that was kept for draining as well
                            await asyncio.sleep(chance.random() * 2)
                        print(f"round {number}: {sender.acked_records} acked, {disk.free_bytes} bytes free")
                        disk.free()
                        await hub.wait_admitting()
                    sender.stop_sending()
                    async with asyncio.timeout(PATIENCE_S):
                        await sending
                await hub.check(sender, sink, endpoint)
                await hub.stop()
