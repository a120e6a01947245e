"""File descriptors run out on a running edge with traffic, again and again: receivers pause, senders wait, nothing acknowledged is lost,
and everything goes on when there are some again. With the real command.
"""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

from tests.chaos.fleet import EXTRA_ROUNDS, PATIENCE_S, Fleet, seeded
from tests.chaos.test_kill_edge_and_central import Sink
from tests.support.acked_sender import AckedSender
from tests.support.otlp_endpoint import OtlpEndpoint

ROUNDS = 2 + min(EXTRA_ROUNDS, 10)
STRANGERS = 16


async def test_an_edge_without_file_descriptors_pauses_and_recovers_and_loses_nothing(tmp_path: Path) -> None:
    chance, sink = seeded(), Sink()
    async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
        fleet = Fleet.configure(tmp_path, endpoint.url)
        sender = AckedSender(fleet.edge_port, pace_s=0.01)
        try:
            await fleet.central.start()
            await fleet.edge.start()
            await fleet.edge.wait_ready()
            assert fleet.edge.process is not None
            pid = fleet.edge.process.pid
            most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(sender.run())
                for _ in range(ROUNDS):
                    await sender.wait_acked(len(sender.acked) + 200)
                    said_before = fleet.edge.log_file.read_text().count("cannot accept a connection")
                    in_use = len(os.listdir(f"/proc/{pid}/fd"))
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use + chance.randint(0, 4), most[1]))
                    strangers = [(await asyncio.open_connection("127.0.0.1", fleet.edge_port))[1] for _ in range(STRANGERS)]
                    if chance.random() < 0.5:  # what the edge sends over is gone as well, and cannot be opened anew
                        await fleet.central.stop()
                        await fleet.central.start()
                    async with asyncio.timeout(PATIENCE_S):
                        while fleet.edge.log_file.read_text().count("cannot accept a connection") == said_before:  # noqa: ASYNC110
                            await asyncio.sleep(0.1)
                    assert fleet.edge.process.returncode is None
                    for writer in strangers:
                        writer.close()
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, most)
                    await fleet.central.wait_ready()
                    async with asyncio.timeout(PATIENCE_S):
                        await sender.wait_acked(len(sender.acked) + 200)
                        await asyncio.open_connection("127.0.0.1", fleet.edge_port)
                sender.stop_sending()
                async with asyncio.timeout(PATIENCE_S):
                    await sending
            await endpoint.wait_until(lambda: sender.acked <= sink.arrived.keys(), PATIENCE_S)
            edge, central = await fleet.edge.drained_books(), await fleet.central.drained_books()
            edge.assert_balanced()
            central.assert_balanced()
            assert len(sink.arrived) == edge.appended == central.appended
            await fleet.edge.stop()
            await fleet.central.stop()
        finally:
            for one in (fleet.edge, fleet.central):
                await one.end()
