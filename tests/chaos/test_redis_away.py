"""Redis goes away in traffic, and central with it: what was acknowledged from the spool arrives, once, and the books balance.

The processes are those of `chain.py`. A round takes Redis away (ended in order, killed, or hanging), lets central take into its spool, may
kill central while it spools, brings Redis back, and may kill central while it drains, also between what Redis has done and what the spool
knows of it. From edge to central every block is known by its id: so nothing may come twice, whatever happens.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from tests.chaos.chain import Chain, cleaned_up, in_redis
from tests.chaos.fleet import EXTRA_ROUNDS, PATIENCE_S, Member, seeded
from tests.chaos.witness import Sink
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_sender import OtlpSender
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis
KINDS = ("shut_down", "kill", "pause")
DEATHS = ("none", "spooling", "spool.drained", "draining", "log.commit")


async def spool_state(central: Member) -> dict[str, float]:
    """Return what `/metrics` says of the spool."""
    found: dict[str, float] = {}
    for line in (await asyncio.to_thread(central._get, "/metrics")).splitlines():
        if line.startswith("emp_pipe_spool_"):
            name, value = line.removeprefix("emp_pipe_spool_").rsplit(" ", 1)
            found[name] = float(value)
    return found


async def wait_spooled(central: Member, least: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await spool_state(central))["held_records"] < least:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)


async def outage(server: RedisServer, chain: Chain, sender: OtlpSender, how: str, death: str, chance: Random) -> None:
    central = chain.central
    await sender.wait_acked(sender.acked_records + chance.randint(40, 200))
    await asyncio.to_thread(getattr(server, how))
    await wait_spooled(central, chance.randint(50, 400))
    if death in ("spooling", "log.commit"):
        central.kill()
        await central.wait_killed()
        if death == "log.commit":
            await central.start(f"log.commit:{chance.randint(5, 20)}")
            await central.wait_killed()
        await central.start()
        await central.wait_ready()
        await wait_spooled(central, 1)
    if death == "spool.drained":
        central.kill()
        await central.wait_killed()
        await central.start("spool.drained")
        await central.wait_ready()
        await wait_spooled(central, 100)
    await asyncio.to_thread(server.resume if how == "pause" else server.start)
    if death == "draining":
        await asyncio.sleep(chance.random() * 0.3)
        central.kill()
    if death in ("spool.drained", "draining"):
        await central.wait_killed()
        await central.start()
        await central.wait_ready()
    await sender.wait_acked(sender.acked_records + 100)


async def test_redis_away_and_central_killed_in_spooling_and_draining_loses_and_doubles_nothing(tmp_path: Path) -> None:
    chance, sink = seeded(), Sink()
    rounds = [(KINDS[number % len(KINDS)], death) for number, death in enumerate(DEATHS)]
    rounds += [(chance.choice(KINDS), chance.choice(DEATHS)) for _ in range(EXTRA_ROUNDS)]
    chance.shuffle(rounds)
    with RedisServer(maxmemory_bytes=512 << 20) as server:
        async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
            spool = {"enabled": True, "after_s": 0.3, "retry_max_s": 0.5}
            chain = Chain.configure(tmp_path, endpoint.url, buffer=in_redis(server.url, timeout_s=2.0, spool=spool))
            sender = chain.sender(chance.getrandbits(32))
            async with cleaned_up(chain):
                await chain.start()
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(sender.run())
                    for how, death in rounds:
                        print(f"Redis: {how}, central: {death}; {sender.acked_records} acked, {sender.unacked_records} in flight")
                        await outage(server, chain, sender, how, death, chance)
                    sender.stop_sending()
                    async with asyncio.timeout(PATIENCE_S):
                        await sending
                await chain.check(sender, sink, endpoint)
                said = await spool_state(chain.central)
                assert said["held_appends"] == 0
                assert said['records_total{outcome="unproven"}'] == 0
                await chain.stop()
        print(f"{len(rounds)} outages: {sender.acked_records} acked, 0 missing, 0 doubled")
