"""The fleet's main path with everything that derives, and who is killed on it:

    OTLP clients → edge (merges metrics) → central (RED, tail sampling, merging) ─┬→ a last emp-pipe → a strict OTLP endpoint
                                                                                  └→ a second strict OTLP endpoint, by OTLP itself

The last one is not killed and knows repeats by their block ids, so what arrives behind it is what central sent, each block once. The second
endpoint gets the same at least once: what it gets again is counted. Central's log is in SQLite or in Redis.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.fleet import KEY, PATIENCE_S, Books, Member, Sender, kill_in_traffic, member, write_certificates
from tests.chaos.witness import Sink, assert_logs, assert_metrics, assert_traces, of_receivers
from tests.support.command import free_port
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_sender import SIGNALS, OtlpSender
from tests.support.redis_server import RedisServer

POINTS = ("log.append", "log.commit", "delivery.send", "pipeline.drain", "derive.commit", "derive.committed")
QUICK = {"retry_initial_s": 0.05, "retry_max_s": 0.5}


def in_redis(url: str, **settings: Any) -> dict[str, Any]:
    """Return the settings of a log in Redis: where that is away senders wait, and shards go on a second after their owner's death."""
    quick = {"lease_s": 1.0, "patience_s": 1.0, "connect_timeout_s": 1.0}
    return {"type": "redis", "url": url, **quick, "spool": {"enabled": False}, **settings}


@dataclass
class Chain:
    """The three processes, and the edge's ports by signal."""

    edge: Member
    central: Member
    last: Member
    ports: dict[str, int]
    grpc_port: int

    @classmethod
    def configure(cls, directory: Path, sink_url: str, direct: dict[str, Any] | None = None, buffer: dict[str, Any] | None = None) -> Chain:
        """`direct`: central's exporters beside the one to the last. `buffer`: central's log."""
        write_certificates(directory)
        ports, grpc_port = {signal: free_port() for signal in SIGNALS}, free_port()
        central_port, last_port = free_port(), free_port()
        tls = {"cert_file": str(directory / "cert.pem"), "key_file": str(directory / "key.pem")}

        def secure(port: int) -> dict[str, Any]:
            return {"forward/secure": {"listen": f"127.0.0.1:{port}", "tls": tls, "shared_key": KEY}}

        def onward(port: int) -> dict[str, Any]:
            endpoint = {"endpoint": f"127.0.0.1:{port}", "tls": {"ca_file": str(directory / "ca.pem")}, "shared_key": KEY}
            return {"forward/onward": {**endpoint, **QUICK}}

        edge = {
            "receivers": {
                **{f"otlp_http/{signal}": {"listen": f"127.0.0.1:{port}"} for signal, port in ports.items()},
                "otlp_grpc/traces": {"listen": f"127.0.0.1:{grpc_port}"},
            },
            "processors": {"aggregate": {"interval_s": 0.3}},
            "exporters": onward(central_port),
        }
        central = {
            "receivers": secure(central_port),
            "processors": {
                "red_metrics": {"interval_s": 0.2},
                "tail_sample": {
                    "decision_wait_s": 0.8,
                    "policies": [{"type": "error"}, {"type": "probability", "percent": 50}],
                },
                "aggregate": {"interval_s": 0.3},
            },
            "exporters": {**onward(last_port), **(direct or {})},
        }
        last = {"receivers": secure(last_port), "exporters": {"otlp_http/sink": {"endpoint": sink_url, **QUICK}}}
        return cls(
            member(directory, "edge", edge),
            member(directory, "central", central, buffer),
            member(directory, "last", last),
            ports,
            grpc_port,
        )

    @property
    def members(self) -> tuple[Member, Member, Member]:
        return self.edge, self.central, self.last

    def sender(self, seed: int, **settings: Any) -> OtlpSender:
        return OtlpSender(self.ports, self.grpc_port, seed, **settings)

    async def start(self) -> None:
        for one in reversed(self.members):
            await one.start()
        for one in self.members:
            await one.wait_ready()

    async def stop(self) -> None:
        for one in self.members:
            await one.stop()

    async def kill(self, victim: Member, point: str, sender: OtlpSender, chance: random.Random) -> None:
        """Kill edge or central in traffic, and let something get through, or all kills hit the same few records."""
        before = self.edge if victim is self.central else None
        # Now and then all senders pause at that moment: such a kill does not count, and comes again.
        for _ in range(3):
            if await kill_in_traffic(victim, point, sender, chance, before=before, required=False):
                break
        else:
            await kill_in_traffic(victim, point, sender, chance, before=before)
        await sender.wait_acked(sender.acked_records + 100)

    async def wait_caught_up(self, most_records: int = 5000) -> None:
        """Return when the edge holds no more than so much: in the long form each kill hits new records, not one old backlog."""
        held = 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (held := await self.edge.held_records()) > most_records:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"the edge still holds {held} records\n{self.edge.tail()}\n{self.central.tail()}") from None

    async def drained(self) -> tuple[Books, Books, Books]:
        """Return the balanced books of all once nothing is held any more."""
        edge, central, last = [await one.drained_books() for one in self.members]
        for books in (edge, central, last):
            books.assert_balanced()
        return edge, central, last

    async def check(self, sender: OtlpSender, sink: Sink, endpoint: OtlpEndpoint) -> tuple[Books, Books]:
        """Every acknowledged record is behind the last one, once; what is derived is right; return the books of edge and central."""
        edge, central, _ = await self.drained()
        assert not endpoint.violations, endpoint.violations[:3]
        assert_logs(sender, sink, of_receivers(edge, "logs"))
        assert_metrics(sender, sink, of_receivers(edge, "metrics"))
        assert_traces(sender, sink, of_receivers(edge, "traces"), central)
        return edge, central


@asynccontextmanager
async def cleaned_up(chain: Chain) -> AsyncIterator[None]:
    """Let no process outlive the test."""
    try:
        yield
    finally:
        for one in chain.members:
            await one.end()


async def kill_redis(server: RedisServer, chain: Chain, sender: Sender, chance: random.Random) -> None:
    """SIGKILL Redis with data on its way to it, leave it away for a moment, start it on what its file has."""
    for _ in range(4):
        if await _kill_redis(server, chain, sender, chance):
            return
    raise AssertionError("Redis died four times while nothing was in flight: the kills prove nothing")


async def _kill_redis(server: RedisServer, chain: Chain, sender: Sender, chance: random.Random) -> bool:
    await sender.wait_acked(sender.acked_records + chance.randint(40, 400))
    await asyncio.sleep(chance.random() * 0.05)
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(chance.choice((0.0, 0.1, chance.random() * 2)))
    in_flight = max(sender.unacked_records, await chain.edge.held_records())
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(PATIENCE_S):
        await chain.central.wait_ready()
    await sender.wait_acked(sender.acked_records + 100)
    return in_flight > 0


def assert_at_least_once(sink: Sink, behind_last: Sink, name: str, kills: int) -> None:
    """A destination that knows no repeats has all that the last one got; what came again is counted and said."""
    came = sink.spans.total() + sink.logs.total() + sink.streams.total()
    wanted = behind_last.spans.total() + behind_last.logs.total() + behind_last.streams.total()
    assert not behind_last.spans.keys() - sink.spans.keys(), f"{name}: spans that another destination got never arrived"
    assert not behind_last.logs - sink.logs, f"{name}: logs that another destination got never arrived"
    assert not behind_last.streams - sink.streams, f"{name}: points that another destination got never arrived"
    assert sink.calls >= behind_last.calls, f"{name}: fewer spans were counted than another destination got"
    again = came - wanted
    print(f"{name}: {again} of {came} records came again in {kills} kills ({100 * again / max(wanted, 1):.3f} %)")
