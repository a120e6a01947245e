"""Several centrals on one Redis, killed, added and rolled in traffic: nothing acknowledged is missing, nothing is derived twice.

The short form kills one at random, adds one, kills one; `make chaos` kills CHAOS_ROUNDS times more. Spans, deltas and log rows are
compared one by one with what was acknowledged; the books are those of the whole log, which each central tells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.centrals import Centrals, cleaned_up
from tests.chaos.fleet import EXTRA_ROUNDS, PATIENCE_S, seeded
from tests.chaos.witness import Sink
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.redis_server import RedisServer, needs_redis

SPOOLS = {"on": {"enabled": True}, "slow": {"enabled": True, "after_s": 0.05}}
"""`slow`: Redis never answers in time, so that what comes is spooled again and again, and the log is opened late."""


@needs_redis
@pytest.mark.timeout(300)
async def test_centrals_that_die_and_join_lose_nothing_and_decide_each_trace_once(tmp_path: Path) -> None:
    chance, sink = seeded(), Sink()
    with RedisServer(maxmemory_bytes=512 << 20) as server:
        async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
            chain = Centrals.on_redis(tmp_path, endpoint.url, server.url)
            rounds = ["kill", "add", "kill", *("kill" for _ in range(EXTRA_ROUNDS))]
            sender = chain.sender(chance.getrandbits(32), busy_pace_s=0.02)
            async with cleaned_up(chain):
                await chain.start()
                assert sorted(await chain.wait_shared()) == [1, 1, 2]
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(sender.run())
                    await sender.wait_acked(200)
                    for what in rounds:
                        print(f"{what}: {sender.acked_records} acked, {sender.unacked_records} in flight")
                        if what == "kill":
                            await chain.kill_one(sender, chance)
                        else:
                            await chain.add_one()
                            assert await chain.wait_shared() == [1, 1, 1, 1]
                    sender.stop_sending()
                    async with asyncio.timeout(PATIENCE_S):
                        await sending
                await chain.wait_shared()
                await chain.check(sender, sink, endpoint)
                await chain.stop()
        print(f"{len(rounds)} rounds: {sender.acked_records} acked, 0 missing, {len(sender.repeated)} requests sent again by clients")


@needs_redis
@pytest.mark.timeout(300)
@pytest.mark.parametrize("spool", SPOOLS)
async def test_a_rolling_restart_in_traffic_loses_nothing_and_leaves_nothing_behind(tmp_path: Path, spool: str) -> None:
    chance, sink = seeded(), Sink()
    with RedisServer(maxmemory_bytes=512 << 20) as server:
        async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
            chain = Centrals.on_redis(tmp_path, endpoint.url, server.url, spool=SPOOLS[spool])
            sender = chain.sender(chance.getrandbits(32), busy_pace_s=0.05)
            async with cleaned_up(chain):
                await chain.start()
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(sender.run())
                    await sender.wait_acked(200)
                    for rolled in chain.centrals * (1 + EXTRA_ROUNDS):
                        print(f"{rolled.name}: {sender.acked_records} acked, {await chain.edge.held_records()} held by the edge")
                        await chain.roll_one(rolled, sender)
                    sender.stop_sending()
                    async with asyncio.timeout(PATIENCE_S):
                        await sending
                assert sorted(await chain.wait_shared()) == [1, 1, 2]
                await chain.check(sender, sink, endpoint)
                await chain.stop()
