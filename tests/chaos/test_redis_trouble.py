"""What becomes of Redis under a central that everything goes through: each trouble with the real command and traffic of all three signals.

Nothing that the edge acknowledged is missing behind central and nothing is there twice, but for FLUSHALL, which loses what Redis held and
nothing else. While Redis is away central takes nothing and says so; the edge holds.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis

from tests.chaos.chain import Chain, cleaned_up, in_redis
from tests.chaos.fleet import PATIENCE_S, seeded
from tests.chaos.witness import Sink
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_sender import OtlpSender
from tests.support.redis_cluster import RedisPair, ask, info
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.tcp_proxy import TcpProxy

pytestmark = needs_redis

MAXMEMORY_BYTES = 512 << 20


@dataclass
class Traffic:
    """A chain that is being sent to."""

    chain: Chain
    sender: OtlpSender
    sink: Sink
    endpoint: OtlpEndpoint
    chance: Random
    sending: asyncio.Task[None]

    async def stop_sending(self) -> None:
        """Return when everything that was sent is acknowledged."""
        self.sender.stop_sending()
        async with asyncio.timeout(PATIENCE_S):
            await self.sending

    async def more(self, records: int = 200) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.sender.wait_acked(self.sender.acked_records + records)

    async def arrives(self) -> None:
        """Return when something new has come out at the end."""
        before = self.sink.logs.total()
        await self.endpoint.wait_until(lambda: self.sink.logs.total() >= before + 50, PATIENCE_S)

    async def central_says(self, true: Callable[[str], bool]) -> str:
        """Return what central's `/readyz` says once it is as wanted."""
        said = ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not true(said):
                    await asyncio.sleep(0.05)
                    said = await asyncio.to_thread(self._readyz)
        except TimeoutError:
            raise AssertionError(f"/readyz says {said}\n{self.chain.central.tail()}") from None
        return said

    def _readyz(self) -> str:
        try:
            return self.chain.central._get("/readyz")
        except urllib.error.HTTPError as error:
            return error.read().decode()

    async def waits(self, why: str) -> None:
        """Return when central takes nothing, for this reason, and the edge goes on acknowledging."""
        await self.central_says(lambda said: why in said and not json.loads(said)["buffer"]["admitting"])
        await self.more()

    async def goes_on(self) -> None:
        await self.central_says(lambda said: bool(said) and json.loads(said)["buffer"]["admitting"])
        await self.arrives()


@asynccontextmanager
async def traffic(directory: Path, url: str, *, last: bool = True, check: bool = True, **buffer: Any) -> AsyncIterator[Traffic]:
    """Send through a central whose log is in this Redis; at the end see that all is there. `last`: whether the last one is started."""
    chance, sink = seeded(), Sink()
    async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
        chain = Chain.configure(directory, endpoint.url, buffer=in_redis(url, **buffer))
        sender = chain.sender(chance.getrandbits(32), busy_pace_s=0.01)
        async with cleaned_up(chain):
            members = chain.members if last else chain.members[:2]
            for one in members:
                await one.start()
            for one in members:
                await one.wait_ready()
            async with asyncio.TaskGroup() as tasks:
                now = Traffic(chain, sender, sink, endpoint, chance, tasks.create_task(sender.run()))
                await now.more()
                yield now
                await now.stop_sending()
            if check:
                await chain.check(sender, sink, endpoint)
                await chain.stop()
            print(f"{sender.acked_records} acked, {sink.logs.total()} logs and {sink.spans.total()} spans arrived")


async def test_a_redis_that_is_stopped_in_order_makes_senders_wait_and_loses_nothing(tmp_path: Path) -> None:
    with RedisServer(maxmemory_bytes=MAXMEMORY_BYTES) as server:
        async with traffic(tmp_path, server.url) as now:
            for _ in range(2):
                await asyncio.to_thread(server.shut_down)
                await now.waits("cannot be used since")
                await asyncio.to_thread(server.start)
                await now.goes_on()


async def test_a_redis_that_is_restarted_again_and_again_loses_nothing(tmp_path: Path) -> None:
    with RedisServer(maxmemory_bytes=MAXMEMORY_BYTES) as server:
        async with traffic(tmp_path, server.url) as now:
            for _ in range(6):
                await now.more(now.chance.randint(20, 200))
                await asyncio.to_thread(server.restart)
            await now.goes_on()


async def test_a_redis_that_hangs_makes_senders_wait_and_loses_nothing(tmp_path: Path) -> None:
    with RedisServer(maxmemory_bytes=MAXMEMORY_BYTES) as server:
        async with traffic(tmp_path, server.url, timeout_s=1.0) as now:
            server.pause()
            await now.waits("cannot be used since")
            server.resume()
            await now.goes_on()


async def test_flushall_loses_what_redis_held_and_nothing_else_and_is_said_loudly(tmp_path: Path) -> None:
    with RedisServer(maxmemory_bytes=MAXMEMORY_BYTES) as server:
        async with traffic(tmp_path, server.url, last=False, check=False) as now:
            chain = now.chain
            await now.stop_sending()
            await chain.edge.drained_books()
            held = await chain.central.held_records()
            assert held > 0
            ask(server, "FLUSHALL")
            async with asyncio.timeout(PATIENCE_S):
                while "lost the whole buffer (FLUSHALL" not in chain.central.log_file.read_text():  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.05)
            await now.central_says(lambda said: bool(said) and json.loads(said)["buffer"]["admitting"])
            second = chain.sender(now.chance.getrandbits(32))
            second._number = 1_000_000  # other sequence numbers
            await chain.last.start()
            await chain.last.wait_ready()
            assert chain.last.process is not None
            assert chain.last.process.returncode is None, chain.last.tail()
            sending = asyncio.create_task(second.run())
            async with asyncio.timeout(PATIENCE_S):
                await second.wait_acked(500)
                second.stop_sending()
                await sending
            edge, central, _ = await chain.drained()
            assert not second.keys("logs").keys() - now.sink.logs.keys(), "what came after FLUSHALL is lost"
            lost = now.sender.keys("logs").keys() - now.sink.logs.keys()
            assert lost, "the sender's first part was in Redis alone"
            kept = [key[:2] for key in second.keys("traces") if key[2]]
            assert kept
            assert not set(kept) - now.sink.spans.keys()
            assert central.appended < edge.appended, "its books begin with the new buffer"
            await chain.stop()


async def test_a_redis_that_is_failed_over_to_its_replica_loses_nothing_where_replicas_are_waited_for(tmp_path: Path) -> None:
    with RedisPair(maxmemory_bytes=MAXMEMORY_BYTES) as pair:
        async with (
            TcpProxy(pair.primary.port) as proxy,
            traffic(tmp_path, f"redis://127.0.0.1:{proxy.port}", wait_replicas=1, wait_timeout_s=1) as now,
        ):
            await asyncio.to_thread(pair.fail_over)
            proxy.lead_to(pair.replica.port)
            await now.more()  # the new primary has no replica yet: nothing is acknowledged by central
            with RedisServer(maxmemory_bytes=MAXMEMORY_BYTES, lines=[f"replicaof 127.0.0.1 {pair.replica.port}"]) as fresh:
                async with asyncio.timeout(PATIENCE_S):
                    while (await asyncio.to_thread(info, fresh, "replication"))["master_link_status"] != "up":  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                await now.goes_on()
                await now.stop_sending()
                await now.chain.drained()


async def test_a_slow_way_to_redis_loses_nothing_and_everything_drains(tmp_path: Path) -> None:
    with RedisServer(maxmemory_bytes=MAXMEMORY_BYTES) as server:
        async with TcpProxy(server.port) as proxy, traffic(tmp_path, f"redis://127.0.0.1:{proxy.port}") as now:
            for delay_s in (0.02, 0.1):
                proxy.delay_s = delay_s
                await now.more()
            proxy.cut()
            await now.arrives()
            proxy.delay_s = 0.0
            await now.goes_on()


async def test_a_redis_whose_maxmemory_is_reached_makes_senders_wait_and_drains_from_its_reserve(tmp_path: Path) -> None:
    with RedisServer(maxmemory_bytes=4 << 20) as server:
        async with traffic(tmp_path, server.url, last=False) as now:
            now.sender.busy_pace_s = now.sender.pace_s = 0.0
            await now.waits("of its maxmemory; the rest is kept for draining")
            now.sender.busy_pace_s, now.sender.pace_s = 0.01, 0.02
            await now.chain.last.start()
            await now.goes_on()


async def test_a_redis_that_somebody_else_fills_takes_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with RedisServer(maxmemory_bytes=24 << 20) as server:
        async with traffic(tmp_path, server.url) as now:

            def fill() -> None:
                with closing(redis.Redis(unix_socket_path=str(server.socket_path))) as client:
                    for size in (1 << 20, 1 << 12):
                        for number in range(10_000):
                            try:
                                client.set(f"theirs:{size}:{number}", b"x" * size)
                            except redis.exceptions.OutOfMemoryError:
                                break

            await asyncio.to_thread(fill)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                await asyncio.to_thread(ask, server, "SET", "theirs:more", b"x" * (1 << 12))
            await now.waits("maxmemory")
            for key in await asyncio.to_thread(ask, server, "KEYS", "theirs:*"):
                await asyncio.to_thread(ask, server, "DEL", key)
            await now.goes_on()
