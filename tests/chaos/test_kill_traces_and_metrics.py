"""SIGKILL of edge, central and Redis under OTLP traffic of all three signals: nothing acknowledged is lost, nothing is derived twice.

The processes are those of `chain.py`; central's log is in SQLite, then in Redis with `appendfsync always`. Each round kills one of them at
a place where order is a promise (`failpoints.py`), or at a random moment. A kill counts only in traffic.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.chaos.chain import POINTS, QUICK, Chain, assert_at_least_once, cleaned_up, in_redis, kill_redis
from tests.chaos.fleet import ANYWHERE, EXTRA_ROUNDS, PATIENCE_S, seeded
from tests.chaos.witness import Sink
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.redis_server import RedisServer, needs_redis


def rounds_of(kind: str, chance: Random) -> list[tuple[str, str]]:
    """Return who dies where. With Redis a start is slower, so the short form goes through less; the log in SQLite has had the rest."""
    places = [(name, point) for name in ("edge", "central") for point in (*POINTS, ANYWHERE)]
    rounds = list(places)
    if kind == "redis":
        redis = ("redis", ANYWHERE)
        rounds = [*(("central", point) for point in (*POINTS[:4], chance.choice(POINTS[4:]))), redis, redis]
        places += [redis] * 7  # a third of the long form
    rounds += [chance.choice(places) for _ in range(EXTRA_ROUNDS)]
    chance.shuffle(rounds)
    return rounds


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=needs_redis)])
async def test_sigkill_under_otlp_traffic_loses_nothing_acknowledged_and_derives_nothing_twice(tmp_path: Path, kind: str) -> None:
    chance, sink, direct = seeded(), Sink(), Sink()
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(maxmemory_bytes=512 << 20)) if kind == "redis" else None
        async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint, OtlpEndpoint(keep=False, on_received=direct.take) as second:
            buffer = in_redis(server.url) if server is not None else None
            chain = Chain.configure(tmp_path, endpoint.url, {"otlp_http/direct": {"endpoint": second.url, **QUICK}}, buffer)
            rounds = rounds_of(kind, chance)
            sender = chain.sender(chance.getrandbits(32), busy_pace_s=0.02 if EXTRA_ROUNDS else 0.0)
            async with cleaned_up(chain):
                await chain.start()
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(sender.run())
                    await sender.wait_acked(200)
                    for name, point in rounds:
                        print(f"kill {name} at {point}: {sender.acked_records} acked, {sender.unacked_records} in flight")
                        if server is not None and name == "redis":
                            await kill_redis(server, chain, sender, chance)
                        else:
                            await chain.kill(chain.edge if name == "edge" else chain.central, point, sender, chance)
                        if EXTRA_ROUNDS:
                            await chain.wait_caught_up()
                    sender.stop_sending()
                    async with asyncio.timeout(PATIENCE_S):
                        await sending
                await chain.check(sender, sink, endpoint)
                assert not second.violations, second.violations[:3]
                assert_at_least_once(direct, sink, f"central's log in {kind}", len(rounds))
                await chain.stop()
            kills = ", ".join(f"{count} of {name}" for name, count in Counter(name for name, _ in rounds).items())
            print(f"{kills}: {sender.acked_records} acked, 0 missing, {len(sender.repeated)} requests sent again by clients")
