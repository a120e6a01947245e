"""The fleet's main path with several centrals on one Redis: any of them receives, each derives and sends what its shards hold.

OTLP clients → edge → one of the centrals ─▶ Redis (4 shards) ◀─ all centrals → a last emp-pipe → a strict OTLP endpoint
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.chain import Chain, in_redis
from tests.chaos.fleet import PATIENCE_S, Member, Sender, member
from tests.support.command import free_port

SHARDS = 4


@dataclass
class Centrals(Chain):
    """A chain whose central is three processes; `central` is the one whose books are asked for: they are the whole log's."""

    others: list[Member] = field(default_factory=list)
    spare: list[Member] = field(default_factory=list)
    """Not started yet."""

    @classmethod
    def on_redis(cls, directory: Path, sink_url: str, redis_url: str, **settings: Any) -> Centrals:
        buffer = in_redis(redis_url, shards=SHARDS, **settings)
        chain = Chain.configure(directory, sink_url, buffer=buffer)
        file = yaml.safe_load(chain.central.config_file.read_text())
        first = file["receivers"]["forward/secure"]
        ports = [int(first["listen"].rpartition(":")[2]), *(free_port() for _ in range(3))]
        more = [
            member(
                directory,
                f"central-{number}",
                {
                    "receivers": {"forward/secure": {**first, "listen": f"127.0.0.1:{port}"}},
                    "processors": file["processors"],
                    "exporters": file["exporters"],
                },
                buffer,
            )
            for number, port in enumerate(ports[1:], 2)
        ]
        edge = yaml.safe_load(chain.edge.config_file.read_text())
        edge["exporters"]["forward/onward"] |= {"endpoint": [f"127.0.0.1:{port}" for port in ports], "failback_s": 1.0}
        chain.edge.config_file.write_text(yaml.safe_dump(edge))
        return cls(chain.edge, chain.central, chain.last, chain.ports, chain.grpc_port, more[:2], more[2:])

    @property
    def centrals(self) -> list[Member]:
        return [self.central, *self.others]

    @property
    def members(self) -> tuple[Member, ...]:  # type: ignore[override]
        return (self.edge, *self.centrals, self.last)

    async def drained(self) -> Any:
        await self.edge.drained_books()
        await asyncio.sleep(2.0)  # what one central did, the others know about a second later
        books = [await one.drained_books() for one in (self.edge, self.central, self.last)]
        for one in books:
            one.assert_balanced()
        return tuple(books)

    async def wait_shared(self) -> list[int]:
        """Return how many shards each central has, once all have one owner and nobody has more or less than its share: one that
        has just started, and whose log comes late, gets its part a moment later."""
        counts: list[int] = []
        least, most = SHARDS // len(self.centrals), -(-SHARDS // len(self.centrals))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while sum(counts) != SHARDS or max(counts) > most or min(counts) < least:
                    counts = [await owned_by(one) for one in self.centrals]
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"the shards are not shared: {counts}\n{self.central.tail()}") from None
        return counts

    async def kill_one(self, sender: Sender, chance: random.Random) -> None:
        """SIGKILL one of the centrals in traffic; it comes back after its leases have ended."""
        victim = chance.choice(self.centrals)
        await sender.wait_acked(sender.acked_records + chance.randint(40, 400))
        await asyncio.sleep(chance.random() * 0.05)
        victim.kill()
        await victim.wait_killed()
        await sender.wait_acked(sender.acked_records + 100)
        await victim.start()
        await victim.wait_ready()

    async def roll_one(self, rolled: Member, sender: Sender) -> None:
        """Stop one of the centrals in order and start it again, in traffic, as a deploy does."""
        await sender.wait_acked(sender.acked_records + 100)
        await rolled.stop()
        await rolled.start()
        await rolled.wait_ready()

    async def add_one(self) -> None:
        joining = self.spare.pop()
        await joining.start()
        await joining.wait_ready()
        self.others.append(joining)


async def owned_by(one: Member) -> int:
    """Return how many shards a central says that it reads."""
    for line in (await asyncio.to_thread(one._get, "/metrics")).splitlines():
        if line.startswith("emp_pipe_buffer_owned_shards "):
            return int(float(line.split()[1]))
    raise AssertionError("it does not say how many shards it reads")


@asynccontextmanager
async def cleaned_up(chain: Centrals) -> AsyncIterator[None]:
    """Let no process outlive the test."""
    try:
        yield
    finally:
        for one in [*chain.members, *chain.spare]:
            await one.end()
