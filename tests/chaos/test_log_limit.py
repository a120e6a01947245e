"""The log filled to its limit with everything that derives and a required destination that is dead: receivers stop, acknowledge nothing,
the process stays well, and when the destination is back everything drains and goes on. With the real command.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.fleet import PATIENCE_S, seeded
from tests.chaos.hub import Hub, cleaned_up
from tests.chaos.witness import Sink
from tests.support.otlp_endpoint import OtlpEndpoint

LIMIT_BYTES = 400_000


async def test_a_log_filled_to_its_limit_stops_receivers_and_drains_when_the_destination_is_back(tmp_path: Path) -> None:
    chance, sink = seeded(), Sink()
    async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
        buffer = {"min_free_bytes": 0, "max_bytes": LIMIT_BYTES}
        hub = Hub.configure(tmp_path, tmp_path / "hub", endpoint.url, buffer, {"required": True})
        sender = hub.sender(chance.getrandbits(32), pace_s=0.0)
        async with cleaned_up(hub):
            await hub.hub.start()
            await hub.hub.wait_ready()
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(sender.run())
                await hub.wait_refusing("the rest is kept for draining")
                await asyncio.sleep(1.5)  # what derives goes on from the reserve meanwhile
                books = await hub.hub.books()
                books.assert_balanced()
                acked = sender.acked_records
                await hub.wait_refusing("the rest is kept for draining")
                assert acked <= books.appended
                hub.hub.kill()  # a full log is also what a restart finds
                await hub.hub.wait_killed()
                await hub.hub.start()
                await hub.wait_refusing("the rest is kept for draining")
                await hub.last.start()
                await hub.wait_admitting()
                await sender.wait_acked(acked + 200)
                sender.stop_sending()
                async with asyncio.timeout(PATIENCE_S):
                    await sending
            await hub.check(sender, sink, endpoint)
            await hub.stop()
