"""A Redis Cluster and a replica, as the log's client sees them: commands find their node, a lost answer is not asked for twice, and what
a failover means is said in the same words as everything else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import exceptions as redis_errors

from emp_pipe.buffers.redis_client import RedisClientConfig, Trouble, connect, log_error
from emp_pipe.clock import SystemClock
from tests.support.redis_cluster import RedisCluster, RedisPair, ask
from tests.support.redis_server import RedisServer, needs_redis, needs_redis_tls

pytestmark = needs_redis

_KEYS = ("{pipe.0}:a", "{pipe.1}:a", "{pipe.2}:a", "{pipe.3}:a")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as started:
        yield started


@asynccontextmanager
async def client(**settings: Any) -> AsyncIterator[Any]:
    made: Any = connect(RedisClientConfig.model_validate(settings), "buffer", SystemClock())
    try:
        yield made
    finally:
        await made.aclose()


async def test_every_key_finds_its_node(cluster: RedisCluster) -> None:
    async with client(url=cluster.url, cluster=True) as redis:
        for key in _KEYS:
            await redis.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, key, key)
            assert await redis.get(key) == key.encode()
    nodes = {cluster.node_of(key).port for key in _KEYS}
    assert len(nodes) > 1, "keys of one node prove nothing"


async def test_a_plain_client_on_a_cluster_is_told_which_setting_is_missing(cluster: RedisCluster) -> None:
    async with client(url=cluster.url) as redis:
        key = next(key for key in _KEYS if cluster.node_of(key) is not cluster.nodes[0])
        with pytest.raises(redis_errors.MovedError) as moved:
            await redis.set(key, "1")
    assert "`buffer.cluster`" in str(log_error(moved.value, "buffer"))


async def test_a_cluster_client_on_a_single_server_is_told_so() -> None:
    with RedisServer() as single:
        async with client(url=single.url, cluster=True) as redis:
            with pytest.raises(Exception, match="luster") as refused:
                await redis.set("x", "1")
    assert "`buffer.cluster`" in str(log_error(refused.value, "buffer"))


async def test_a_wrong_password_is_told_in_a_cluster_too() -> None:
    with RedisCluster(nodes=1, password="s3cret") as cluster:
        async with client(url=f"redis://127.0.0.1:{cluster.nodes[0].port}", cluster=True, password="wrong") as redis:
            with pytest.raises(redis_errors.RedisClusterException) as refused:
                await redis.set("x", "1")
    error = log_error(refused.value, "buffer")
    assert error.trouble is Trouble.CREDENTIALS
    assert "s3cret" not in str(error)


async def test_a_node_that_died_is_no_connection_and_back_it_serves_again() -> None:
    with RedisCluster() as cluster:
        key = next(key for key in _KEYS if cluster.node_of(key) is not cluster.nodes[0])
        async with client(url=cluster.url, cluster=True, timeout_s=2, connect_timeout_s=2) as redis:
            await redis.incr(key)
            node = cluster.node_of(key)
            node.kill()
            with pytest.raises(Exception) as gone:  # noqa: PT011 — which of redis-py's many is the point
                await redis.incr(key)
            assert log_error(gone.value, "buffer").trouble in (Trouble.UNREACHABLE, Trouble.CLUSTER_DOWN)
            node.start()
            cluster.wait_whole()
            assert await redis.incr(key) == 2, "the lost command was sent again, or the append-only file was not read"


async def test_a_write_whose_answer_was_lost_is_not_sent_again_in_a_cluster() -> None:
    with RedisCluster() as cluster:
        key = _KEYS[0]
        node = cluster.node_of(key)
        async with client(url=cluster.url, cluster=True, timeout_s=0.3) as redis:
            await redis.incr(key)
            node.pause()
            with pytest.raises(Exception, match=r"[Tt]ime") as lost:
                await redis.incr(key)
            node.resume()
            assert log_error(lost.value, "buffer").answer_lost
            cluster.wait_whole()
            assert ask(node, "GET", key) == b"2"


async def test_a_pipeline_whose_answers_were_lost_is_not_sent_again_in_a_cluster() -> None:
    with RedisCluster() as cluster:
        key = _KEYS[0]
        node = cluster.node_of(key)
        async with client(url=cluster.url, cluster=True, timeout_s=0.3) as redis:
            await redis.incr(key)
            node.pause()
            pipeline = redis.pipeline(transaction=False)
            pipeline.incr(key)
            pipeline.incr(key)
            try:
                replies = await pipeline.execute(raise_on_error=False)
            except redis_errors.RedisError as error:
                replies = [error]
            node.resume()
            assert all(isinstance(reply, Exception) and log_error(reply, "buffer").answer_lost for reply in replies)
            cluster.wait_whole()
            assert ask(node, "GET", key) == b"3"


@needs_redis_tls
async def test_a_cluster_that_speaks_tls_is_reached_through_our_own_contexts() -> None:
    with RedisCluster(tls="mutual") as cluster:
        first = cluster.nodes[0]
        files = {"ca_file": str(first.ca_file), "cert_file": str(first.client_cert_file), "key_file": str(first.client_key_file)}
        async with client(url=cluster.url, cluster=True, tls=files) as redis:
            for key in _KEYS:
                assert await redis.set(key, b"1")
        async with client(url=cluster.url, cluster=True, tls={"ca_file": files["ca_file"]}) as redis:
            with pytest.raises(Exception) as refused:  # noqa: PT011 — which of redis-py's many is the point
                await redis.set("x", "1")
        assert log_error(refused.value, "buffer").trouble is Trouble.UNREACHABLE


async def test_a_replica_that_took_over_has_what_had_reached_it() -> None:
    with RedisPair() as pair:
        async with client(url=pair.primary.url) as redis:
            await redis.set("x", "1")
            assert await redis.execute_command("WAIT", 1, 5000) == 1
            pair.fail_over()
            with pytest.raises(Exception) as gone:  # noqa: PT011 — which of redis-py's many is the point
                await redis.get("x")
            assert log_error(gone.value, "buffer").trouble is Trouble.UNREACHABLE
        async with client(url=pair.replica.url) as redis:
            assert await redis.get("x") == b"1"
            assert await redis.set("x", "2")
