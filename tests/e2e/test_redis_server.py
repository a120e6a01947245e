"""What a Redis promises is found out, said in one sentence, and what makes it no log is refused: asked of real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from emp_pipe.buffers.redis_client import RedisClientConfig, RedisLogError, Trouble, connect
from emp_pipe.buffers.redis_server import Promise, RedisStated, examine
from emp_pipe.clock import SystemClock
from emp_pipe.errors import ConfigError
from tests.support.redis_cluster import RedisCluster, RedisPair, ask
from tests.support.redis_server import RedisServer, needs_redis, version

pytestmark = needs_redis

_LIMIT_BYTES = 256 << 20


async def promise_of(url: str, stated: dict[str, Any] | None = None, **settings: Any) -> Promise:
    waits = {name: settings.pop(name) for name in ("wait_replicas", "wait_aof") if name in settings}
    config = RedisClientConfig.model_validate({"url": url, **settings})
    async with _client(config) as client:
        return await examine(client, config, RedisStated.model_validate(stated or {}), "buffer", **waits)


@asynccontextmanager
async def _client(config: RedisClientConfig) -> AsyncIterator[Any]:
    client: Any = connect(config, "buffer", SystemClock())
    try:
        yield client
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    ("settings", "power_cut", "kill", "says", "warns"),
    [
        ({"appendfsync": "always"}, True, True, "neither a power cut nor a SIGKILL", ""),
        ({"appendfsync": "everysec"}, False, False, "a power cut may lose the last two seconds", "--appendfsync always"),
        ({"appendfsync": "no"}, False, True, "half minute or more, a SIGKILL of Redis nothing", "--appendfsync always"),
        ({"appendfsync": None, "save": "60 1"}, False, False, "last snapshot, taken after 60 s", "--appendonly yes"),
        ({"appendfsync": None}, False, False, "loses everything that it holds", "--appendonly yes"),
        (
            {"appendfsync": "always", "lines": ["no-appendfsync-on-rewrite yes"]},
            False,
            True,
            "a power cut while Redis rewrites",
            "`--no-appendfsync-on-rewrite no`",
        ),
    ],
    ids=["always", "everysec", "no", "snapshots", "nothing", "always but not while it rewrites"],
)
async def test_what_a_power_cut_and_a_kill_lose_is_said_for_each_persistence(
    settings: dict[str, Any], power_cut: bool, kill: bool, says: str, warns: str
) -> None:
    with RedisServer(maxmemory_bytes=_LIMIT_BYTES, **settings) as server:
        promise = await promise_of(server.url)
    assert says in promise.durability
    assert "there is no replica" in promise.durability
    survives = promise.fields["survives"]
    assert (survives["power_cut"], survives["kill"], survives["failover"]) == (power_cut, kill, False)
    if warns:
        assert any(warns in warning for warning in promise.warnings)
    else:
        assert list(promise.warnings) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
async def test_a_redis_that_throws_away_is_refused_with_what_to_do(policy: str) -> None:
    with RedisServer(policy=policy) as server, pytest.raises(ConfigError) as refused:
        await promise_of(server.url)
    assert policy in str(refused.value)
    assert "--maxmemory-policy noeviction" in str(refused.value)


async def test_one_server_of_a_cluster_that_throws_away_is_enough_to_refuse_it() -> None:
    with RedisCluster() as cluster:
        ask(cluster.nodes[2], "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with pytest.raises(ConfigError, match="allkeys-lru"):
            await promise_of(cluster.url, cluster=True)


async def test_a_cluster_promises_what_its_weakest_server_does() -> None:
    with RedisCluster(maxmemory_bytes=_LIMIT_BYTES) as cluster:
        promise = await promise_of(cluster.url, cluster=True)
        assert promise.survives_power_cut is True
        assert promise.fields["servers"] == 3
        assert promise.fields["maxmemory_bytes"] == 3 * _LIMIT_BYTES
        ask(cluster.nodes[1], "CONFIG", "SET", "appendfsync", "everysec")
        ask(cluster.nodes[2], "CONFIG", "SET", "maxmemory", _LIMIT_BYTES // 2)
        promise = await promise_of(cluster.url, cluster=True)
    assert promise.survives_power_cut is False
    assert "3 servers, append-only file, appendfsync everysec" in promise.durability
    assert promise.fields["maxmemory_bytes"] == 3 * _LIMIT_BYTES // 2


async def test_a_replica_counts_only_where_it_is_waited_for() -> None:
    with RedisPair(maxmemory_bytes=_LIMIT_BYTES) as pair:
        unwaited = await promise_of(pair.primary.url)
        waited = await promise_of(pair.primary.url, wait_replicas=1)
        too_many = await promise_of(pair.primary.url, wait_replicas=2)
    assert "a failover may lose" in unwaited.durability
    assert "a failover loses nothing that was acknowledged (a replica had it before)" in waited.durability
    assert (unwaited.survives_failover, waited.survives_failover) == (False, True)
    assert any("`wait_replicas` is 2 and 1 are connected" in warning for warning in too_many.warnings)


async def test_a_replica_is_not_taken_for_the_log() -> None:
    with RedisPair() as pair, pytest.raises(RedisLogError) as refused:
        await promise_of(pair.replica.url)
    assert refused.value.trouble is Trouble.READ_ONLY


_MANAGED: dict[str, Any] = {"users": {"pipe": "on >s3cret ~* +info +ping"}, "maxmemory_bytes": _LIMIT_BYTES}
"""Forbids CONFIG GET, as managed ones do."""


async def test_what_cannot_be_asked_is_said_and_not_guessed() -> None:
    with RedisServer(**_MANAGED) as server:
        promise = await promise_of(server.url, username="pipe", password="s3cret")
    assert "how it keeps its data could not be checked" in promise.durability
    assert promise.fields["survives"]["power_cut"] is None
    assert promise.fields["persistence"] == "unknown"
    assert promise.fields["maxmemory_policy"] == "noeviction", "INFO says it"
    assert any("buffer.stated.persistence" in warning for warning in promise.warnings)


async def test_what_was_stated_by_hand_is_said_as_such() -> None:
    with RedisServer(**_MANAGED) as server:
        promise = await promise_of(server.url, {"persistence": "always"}, username="pipe", password="s3cret")
    assert "appendfsync always as stated by hand" in promise.durability
    assert promise.fields["persistence_is_stated"] is True
    assert promise.survives_power_cut is True
    assert list(promise.warnings) == []


async def test_what_can_be_asked_counts_more_than_what_was_stated() -> None:
    with RedisServer(appendfsync="everysec") as server:
        promise = await promise_of(server.url, {"persistence": "always"})
    assert promise.survives_power_cut is False
    assert any("says always, Redis says everysec" in warning for warning in promise.warnings)


async def test_a_policy_that_info_names_is_refused_also_where_config_is_forbidden() -> None:
    with RedisServer(**_MANAGED, policy="allkeys-lfu") as server, pytest.raises(ConfigError, match="allkeys-lfu"):
        await promise_of(server.url, {"noeviction": True}, username="pipe", password="s3cret")


async def test_a_user_that_may_not_even_ask_info_is_told_what_to_allow() -> None:
    with RedisServer(users={"pipe": "on >s3cret ~* +ping"}) as server, pytest.raises(RedisLogError) as refused:
        await promise_of(server.url, username="pipe", password="s3cret")
    assert refused.value.trouble is Trouble.PERMISSION
    assert "docs/redis.md" in str(refused.value)


@pytest.mark.parametrize(("maxmemory_bytes", "warns"), [(0, "`maxmemory` is not set"), (16 << 20, "only 16 MiB")])
async def test_a_limit_that_is_absent_or_tiny_is_warned_of(maxmemory_bytes: int, warns: str) -> None:
    with RedisServer(maxmemory_bytes=maxmemory_bytes) as server:
        promise = await promise_of(server.url)
    assert any(warns in warning for warning in promise.warnings)


async def test_waiting_for_the_disk_mends_everysec_where_redis_can_do_it() -> None:
    with RedisServer(appendfsync="everysec") as server:
        promise = await promise_of(server.url, wait_aof=True)
    assert promise.survives_power_cut is (version() >= (7, 2)), "WAITAOF came with 7.2"


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", False), ("localhost", False), ("redis.railway.internal", False), ("10.0.0.7", True), ("redis.example.com", True)],
)
def test_plain_text_over_a_network_is_warned_of(host: str, warned: bool) -> None:
    from emp_pipe.buffers.redis_server import _is_read_on_the_way

    assert _is_read_on_the_way(RedisClientConfig.model_validate({"url": f"redis://{host}:6379"})) is warned
    assert not _is_read_on_the_way(RedisClientConfig.model_validate({"url": f"rediss://{host}:6379"}))


async def test_an_old_redis_is_refused() -> None:
    class Old:
        async def info(self) -> dict[str, Any]:
            return {"redis_version": "6.0.16", "maxmemory_policy": "noeviction"}

        async def config_get(self, name: str) -> dict[str, str]:
            return {}

    config = RedisClientConfig.model_validate({"url": "redis://localhost"})
    with pytest.raises(ConfigError, match=r"Redis 6\.0\.16 is too old"):
        await examine(Old(), config, RedisStated(), "buffer")  # type: ignore[arg-type]  # two methods are all that is asked of it


async def test_a_server_that_says_nothing_of_its_version_is_no_redis() -> None:
    class Strange:
        async def info(self) -> dict[str, Any]:
            return {"hello": "world"}

    config = RedisClientConfig.model_validate({"url": "redis://localhost"})
    with pytest.raises(RedisLogError) as refused:
        await examine(Strange(), config, RedisStated(), "buffer")  # type: ignore[arg-type]  # one method is all that is asked of it
    assert refused.value.trouble is Trouble.NOT_REDIS
