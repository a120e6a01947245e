"""One fixture over all logs: a promise of `log/protocol.py` is tested on every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import apsw
import pytest
from redis.asyncio import Redis, RedisCluster

from emp_pipe.buffers.memory import MemoryConfig, MemoryLog
from emp_pipe.buffers.redis import RedisConfig, RedisLog
from emp_pipe.buffers.redis_placement import shard_of_offset
from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.component import Context
from emp_pipe.log.protocol import Append, Delivery, GroupSpec, Log, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block, numbers_in
from tests.support.manual_clock import ManualClock
from tests.support.redis_cluster import RedisCluster as Servers
from tests.support.redis_server import RedisServer, needs_redis

DEADLINE_S = 30.0


def group(name: str, *topics: Topic, **settings: Any) -> GroupSpec:
    """Return a group that reads the topics, logs unless told otherwise."""
    return GroupSpec(name, frozenset(topics or (Topic.LOGS,)), **settings)


class OpenLog:
    """A log under test with its clock. `reopen` is a restart: for the durable ones without any farewell to the groups."""

    def __init__(self, kind: str, directory: Path, url: str = "", *, cluster: bool = False, **settings: Any) -> None:
        self.kind = kind
        self._url = url
        self._cluster = cluster
        self._prefix = f"test-{token_hex(4)}"
        self.clock = ManualClock()
        self.settings = settings
        self._directory = directory
        self.log: Log = self._make()

    @property
    def shards(self) -> int:
        return int(self.kind.partition("-")[2] or 1)

    @property
    def durable(self) -> bool:
        return self.kind != "memory"

    def _make(self) -> Log:
        context = Context(self.clock, Metrics(), self._directory, "m1", "run")
        if self.kind == "memory":
            return MemoryLog("memory", MemoryConfig(**self.settings), context)
        if self.kind.startswith("redis"):
            # the only replica: what its configuration does not name nobody names
            of_all = {"url": self._url, "cluster": self._cluster, "prefix": self._prefix, "retire_after_s": 0, "shards": self.shards}
            settings = {**of_all, **self.settings}
            return RedisLog("redis", RedisConfig(**settings), context)
        return SqliteLog("sqlite", SqliteConfig(**{"min_free_bytes": 0, **self.settings}), context)

    async def open(self, *groups: GroupSpec) -> Log:
        await self.log.open(groups)
        return self.log

    async def close(self) -> None:
        await self.log.close(self.clock.monotonic_s() + DEADLINE_S)

    async def reopen(self, *groups: GroupSpec) -> Log:
        if not self.durable:
            pytest.skip("memory forgets by design")
        await self.close()
        self.log = self._make()
        return await self.open(*groups)

    async def append(self, *numbers: int, topic: Topic = Topic.LOGS, padding_bytes: int = 0) -> Sequence[int]:
        """Append one block a number."""
        blocks = [block([number], topic=topic, padding_bytes=padding_bytes) for number in numbers]
        return (await self.log.append(Append(blocks))).offsets

    async def read(self, group: str, max_bytes: int = 1 << 30) -> list[Delivery]:
        """Wait for something to read, and read it."""
        async with asyncio.timeout(DEADLINE_S):
            await self.log.wait_readable(group)
            deliveries = await self.log.read(group, max_bytes)
        if self.shards == 1:
            return deliveries
        # each shard in its order; between two of them there is none, so tests are given them by their numbers
        for shard in {shard_of_offset(delivery.offset) for delivery in deliveries}:
            offsets = [delivery.offset for delivery in deliveries if shard_of_offset(delivery.offset) == shard]
            assert offsets == sorted(offsets), f"shard {shard}: out of order"
        return sorted(deliveries, key=lambda delivery: numbers_in(delivery.block) if delivery.block.signal == "logs" else [])

    async def damage(self, topic: Topic, offsets: Sequence[int]) -> None:
        """Make blocks of a closed log unreadable: their headers are cut short."""
        if self.kind.startswith("redis"):
            await self._damage_redis(topic, {f"{offset}-0".encode() for offset in offsets})
            return
        connection = apsw.Connection(str(next(self._directory.rglob("*.db"))))
        connection.executemany("UPDATE blocks SET header=x'00' WHERE offset=?", [(offset,) for offset in offsets])
        connection.close()

    def _client(self, **settings: Any) -> Any:
        return (RedisCluster if self._cluster else Redis).from_url(self._url, **settings)

    async def _damage_redis(self, topic: Topic, ids: set[bytes]) -> None:
        client = self._client()
        key = f"{{{self._prefix}.0}}:stream:{topic}"
        entries = await client.xrange(key)
        await client.delete(key)
        for id, fields in entries:
            await client.xadd(key, {**fields, b"h": b"\0"} if id in ids else fields, id=id)
        await client.aclose()

    async def until(self, condition: Any) -> None:
        """Return when a condition holds that the log reaches in the background; time stands still meanwhile."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 (what it waits for happens on threads of the log)
                await asyncio.sleep(0.005)

    async def check_stored(self) -> None:
        """What Redis has counted as it changed is what lies there."""
        async with self._client(decode_responses=True, encoding_errors="replace") as client:
            for shard in range(self.shards):
                await self._check_shard(client, f"{{{self._prefix}.{shard}}}:")

    @staticmethod
    async def _check_shard(client: Any, base: str) -> None:
        entries = {line.split()[0]: line.split() for line in await client.zrange(f"{base}index", 0, -1)}
        books = {tuple(field.split("\x1f")): int(number) for field, number in (await client.hgetall(f"{base}books")).items()}
        counted: dict[tuple[str, ...], int] = {}
        everything: set[str] = set()
        for group in await client.hkeys(f"{base}groups"):
            for offset in await client.zrange(f"{base}held:{group}", 0, -1):
                _, topic, size, records, _ = entries[offset]
                everything.add(offset)
                for what, number in (("blocks", 1), ("bytes", int(size)), ("records", int(records))):
                    counted["h", topic, group, what] = counted.get(("h", topic, group, what), 0) + number
        assert {key: number for key, number in books.items() if key[0] == "h"} == {key: n for key, n in counted.items() if n}
        assert everything == set(entries), "blocks that nobody holds are kept, or the other way round"
        streams = [id.split("-")[0] for topic in Topic for id, _ in await client.xrange(f"{base}stream:{topic}")]
        assert set(streams) == everything
        assert int(await client.hget(f"{base}meta", "held_bytes") or 0) == sum(int(entry[2]) for entry in entries.values())

    async def check_books(self) -> None:
        """Both equations hold now."""
        for receiver in await self.log.receiver_books():
            assert receiver.balanced, f"the receiver's books do not balance: {receiver}"
        for books in await self.log.group_books():
            assert books.balanced, f"the group's books do not balance: {books}"
        held = {(books.topic, books.group): books.held for books in await self.log.group_books()}
        for usage in self.log.usage().groups:
            counted = sum(held[topic.value, usage.spec.name] for topic in usage.spec.topics)
            assert counted == usage.held_records, f"{usage.spec.name} holds {usage.held_records} records, its books say {counted}"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """One server for all: each test has a prefix of its own."""
    with RedisServer(appendfsync="always") as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_cluster_url() -> Iterator[str]:
    """One cluster of three servers for all; the prefix decides on which of them a test's shard lies."""
    with Servers(appendfsync="always") as servers:
        yield servers.url


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "opened" in metafunc.fixturenames:
        # what derives knows nothing of a cluster: there the log's own promises are enough
        on_redis = (
            ("redis", "redis-4", "redis@cluster") if metafunc.module.__name__.rpartition(".")[2].startswith("test_log") else ("redis",)
        )
        kinds = ["sqlite", "memory", *(pytest.param(kind, marks=needs_redis) for kind in on_redis)]
        kinds = getattr(metafunc.module, "KINDS", kinds)
        metafunc.parametrize("opened", kinds, indirect=True)


@pytest.fixture
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenLog]:
    """A log that has been made and not opened yet. Whatever a test did, its books balance at the end, also after a restart."""
    settings = getattr(request.node.get_closest_marker("log_settings"), "kwargs", {})
    kind, _, where = request.param.partition("@")
    url = request.getfixturevalue("redis_cluster_url" if where else "redis_url") if kind.startswith("redis") else ""
    under_test = OpenLog(kind, tmp_path, url, cluster=bool(where), **settings)
    yield under_test
    await under_test.check_books()
    specs = [usage.spec for usage in under_test.log.usage().groups]
    await under_test.close()
    if under_test.kind.startswith("redis"):
        await under_test.check_stored()
    if under_test.durable:
        under_test.log = under_test._make()
        await under_test.open(*specs)
        await under_test.check_books()
        await under_test.close()
