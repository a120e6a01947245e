"""The way to Redis over real sockets: TLS, ACL users and unix sockets get in, and each refusal says what it is and what to do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions as redis_errors

from emp_pipe.buffers.redis_client import RedisClientConfig, RedisLogError, Trouble, connect, log_error, ping
from emp_pipe.clock import SystemClock
from emp_pipe.errors import ConfigError, ErrorKind, Retry
from tests.support.redis_server import RedisServer, needs_redis, needs_redis_tls

pytestmark = needs_redis


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(password="s3cret", users={"reader": "on >r3ader ~log:* +ping +get", "off": "off >x"}) as started:
        yield started


@asynccontextmanager
async def client(**settings: Any) -> AsyncIterator[Any]:
    made: Any = connect(RedisClientConfig.model_validate(settings), "buffer", SystemClock())
    try:
        yield made
    finally:
        await made.aclose()


async def refused(settings: dict[str, Any], *command: object) -> RedisLogError:
    async with client(**settings) as redis:
        try:
            await (redis.execute_command(*command) if command else redis.ping())
        except Exception as error:
            return log_error(error, "buffer")
    raise AssertionError("it was not refused")


async def test_the_password_of_a_url_gets_in(server: RedisServer) -> None:
    async with client(url=server.url) as redis:
        assert await redis.ping() is True


async def test_an_acl_user_with_a_password_from_a_file_gets_in_also_after_it_was_rotated(server: RedisServer, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("r3ader\n")
    settings = {"url": f"redis://127.0.0.1:{server.port}", "username": "reader", "password": {"file": str(secret)}}
    async with client(**settings) as redis, client(url=server.url) as admin:
        assert await redis.ping() is True
        await admin.execute_command("ACL", "SETUSER", "reader", "resetpass", ">n3w")
        await admin.execute_command("CLIENT", "KILL", "USER", "reader")
        secret.write_text("n3w\n")
        with contextlib.suppress(redis_errors.ConnectionError):  # the connection that was cut may be found so only now
            await redis.ping()
        assert await redis.ping() is True
        await admin.execute_command("ACL", "SETUSER", "reader", "resetpass", ">r3ader")


async def test_a_unix_socket_is_a_way_in(server: RedisServer) -> None:
    async with client(url=f"unix://{server.socket_path}?db=2", password="s3cret") as redis:
        assert await redis.set("log:x", b"1")
        assert await redis.get("log:x") == b"1"


@pytest.mark.parametrize(
    ("settings", "command", "trouble", "advice"),
    [
        ({}, (), Trouble.CREDENTIALS, "buffer.password"),
        ({"password": "wrong"}, (), Trouble.CREDENTIALS, "buffer.password"),
        ({"username": "off", "password": "x"}, (), Trouble.CREDENTIALS, "buffer.password"),
        ({"username": "reader", "password": "r3ader"}, ("SET", "log:x", "1"), Trouble.PERMISSION, "docs/redis.md"),
        ({"username": "reader", "password": "r3ader"}, ("GET", "other"), Trouble.PERMISSION, "docs/redis.md"),
    ],
    ids=["no password", "wrong password", "a user that is off", "a command that is not allowed", "a key that is not allowed"],
)
async def test_a_refusal_says_what_it_is_and_what_to_do(
    server: RedisServer, settings: dict[str, Any], command: tuple[str, ...], trouble: Trouble, advice: str
) -> None:
    error = await refused({"url": f"redis://127.0.0.1:{server.port}", **settings}, *command)
    assert error.trouble is trouble
    assert error.kind is ErrorKind.LOG_IO
    assert error.retry is Retry.LATER
    assert advice in str(error)
    assert not error.answer_lost
    assert "wrong" not in str(error).lower().replace("wrongpass", "")


async def test_nobody_listening_says_that_there_is_no_connection() -> None:
    from tests.support.command import free_port

    error = await refused({"url": f"redis://127.0.0.1:{free_port()}"})
    assert error.trouble is Trouble.UNREACHABLE
    assert "check that Redis runs" in str(error)


async def test_a_server_that_does_not_answer_in_time_is_given_up(server: RedisServer) -> None:
    with RedisServer() as slow:
        async with client(url=slow.url, timeout_s=0.2, connect_timeout_s=0.2) as redis:
            assert await redis.ping()
            slow.pause()
            with pytest.raises(RedisLogError) as given_up:
                await ping(redis, "buffer")
            assert given_up.value.trouble is Trouble.TIMED_OUT
            assert given_up.value.answer_lost
            slow.resume()
            await ping(redis, "buffer")


async def test_a_full_server_is_told_from_a_broken_one() -> None:
    with RedisServer(appendfsync=None, maxmemory_bytes=1) as full:
        error = await refused({"url": full.url}, "SET", "x", "1")
    assert error.trouble is Trouble.OUT_OF_MEMORY
    assert error.kind is ErrorKind.LOG_FULL
    assert "maxmemory" in str(error)


async def test_a_full_server_is_told_from_a_broken_one_inside_a_script_too() -> None:
    with RedisServer(appendfsync=None, maxmemory_bytes=1) as full:
        error = await refused({"url": full.url}, "EVAL", "return redis.call('XADD', KEYS[1], '1-0', 'a', 'b')", 1, "x")
    assert error.trouble is Trouble.OUT_OF_MEMORY


async def test_a_replica_says_that_it_takes_no_writes(server: RedisServer) -> None:
    with RedisServer() as primary, RedisServer(lines=[f"replicaof 127.0.0.1 {primary.port}"]) as replica:
        error = await refused({"url": replica.url}, "SET", "x", "1")
    assert error.trouble is Trouble.READ_ONLY
    assert "primary" in str(error)


@pytest.mark.parametrize(
    ("answer", "trouble", "passing"),
    [
        ("LOADING Redis is loading the dataset in memory", Trouble.LOADING, True),
        ("CLUSTERDOWN The cluster is down", Trouble.CLUSTER_DOWN, True),
        ("CLUSTERDOWN Hash slot not served", Trouble.CLUSTER_DOWN, True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Trouble.CLUSTER_DOWN, True),
        ("READONLY You can't write against a read only replica.", Trouble.READ_ONLY, False),
        ("NOREPLICAS Not enough good replicas to write.", Trouble.READ_ONLY, False),
        ("MISCONF Errors writing to the AOF file: No space left on device", Trouble.DISK, False),
        ("OOM command not allowed when used memory > 'maxmemory'.", Trouble.OUT_OF_MEMORY, False),
        ("NOAUTH Authentication required.", Trouble.CREDENTIALS, False),
        ("WRONGPASS invalid username-password pair or user is disabled.", Trouble.CREDENTIALS, False),
        ("NOPERM this user has no permissions to run the 'set' command", Trouble.PERMISSION, False),
        ("ERR max number of clients reached", Trouble.UNREACHABLE, True),
        ("ERR something that nobody knows yet", Trouble.OTHER, False),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) and " " in value else None,
)
async def test_each_answer_of_redis_is_told_from_the_others(answer: str, trouble: Trouble, passing: bool) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(f"-{answer}\r\n".encode())
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with listener:
        error = await refused({"url": f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"}, "SET", "x", "1")
    assert (error.trouble, error.passing) == (trouble, passing)
    assert answer.partition(" ")[2][:20] in str(error), "the server's own words are told too"


async def test_what_is_not_a_redis_is_called_so() -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(web, "127.0.0.1", 0)
    async with listener:
        error = await refused({"url": f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"})
    assert error.trouble is Trouble.NOT_REDIS


async def test_a_plain_port_asked_for_tls_is_told(server: RedisServer) -> None:
    error = await refused({"url": f"rediss://127.0.0.1:{server.port}", "tls": {"insecure_skip_verify": True}, "connect_timeout_s": 0.3})
    assert error.trouble is Trouble.UNREACHABLE
    assert "rediss://" in str(error)


async def test_a_write_whose_answer_was_lost_is_not_sent_again() -> None:
    with RedisServer() as slow:
        async with client(url=slow.url, timeout_s=0.3) as redis, client(url=slow.url) as other:
            assert await redis.incr("count") == 1
            slow.pause()
            with pytest.raises(Exception, match="Timeout") as lost:
                await redis.incr("count")
            assert log_error(lost.value, "buffer").answer_lost
            slow.resume()
            await redis.ping()
            assert await other.get("count") == b"2", "the client sent it more than once"


async def test_a_pipeline_whose_answers_were_lost_is_not_sent_again() -> None:
    with RedisServer() as slow:
        async with client(url=slow.url, timeout_s=0.3) as redis, client(url=slow.url) as other:
            await redis.ping()
            slow.pause()
            pipeline = redis.pipeline(transaction=False)
            pipeline.incr("count").incr("count")
            with pytest.raises(redis_errors.TimeoutError) as lost:
                await pipeline.execute(raise_on_error=False)
            assert log_error(lost.value, "buffer").answer_lost
            slow.resume()
            await redis.ping()
            assert await other.get("count") == b"2", "the client sent it more than once"


async def test_a_write_into_a_cut_connection_is_not_sent_again() -> None:
    sent: list[bytes] = []

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent.append(await reader.read(1000))
        writer.close()

    listener = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with listener:
        error = await refused({"url": f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"}, "INCR", "x")
    assert error.trouble is Trouble.UNREACHABLE
    assert error.answer_lost
    assert len(sent) == 1


async def test_a_secret_that_cannot_be_read_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    config = RedisClientConfig.model_validate({"url": "redis://127.0.0.1:1", "password": {"file": str(tmp_path / "none")}})
    with pytest.raises(ConfigError, match="cannot be read"):
        connect(config, "buffer", SystemClock())


@pytest.fixture(scope="module")
def mutual() -> Iterator[RedisServer]:
    with RedisServer(tls="mutual") as started:
        yield started


def files(server: RedisServer) -> dict[str, str]:
    return {"cert_file": str(server.client_cert_file), "key_file": str(server.client_key_file)}


@needs_redis_tls
async def test_a_server_of_the_given_authority_is_trusted() -> None:
    with RedisServer(tls=True) as server:
        async with client(url=server.url, tls={"ca_file": str(server.ca_file)}) as redis:
            assert await redis.ping() is True


@needs_redis_tls
async def test_a_server_of_another_authority_is_not(mutual: RedisServer) -> None:
    error = await refused({"url": mutual.url, "tls": files(mutual)})
    assert error.trouble is Trouble.UNREACHABLE
    assert "certificate" in str(error)


@needs_redis_tls
async def test_our_certificate_gets_in_where_one_is_asked_for(mutual: RedisServer) -> None:
    async with client(url=mutual.url, tls={"ca_file": str(mutual.ca_file), **files(mutual)}) as redis:
        assert await redis.ping() is True


@needs_redis_tls
async def test_without_a_certificate_nobody_gets_in(mutual: RedisServer) -> None:
    error = await refused({"url": mutual.url, "tls": {"ca_file": str(mutual.ca_file)}})
    assert error.trouble is Trouble.UNREACHABLE


@needs_redis_tls
async def test_another_name_than_that_of_the_certificate_is_refused_unless_it_is_given(mutual: RedisServer) -> None:
    tls = {"ca_file": str(mutual.ca_file), **files(mutual)}
    error = await refused({"url": mutual.url, "tls": {**tls, "server_name": "redis.example"}})
    assert "redis.example" in str(error)
    async with client(url=mutual.url, tls={**tls, "server_name": "localhost"}) as redis:
        assert await redis.ping() is True


@needs_redis_tls
async def test_a_plain_client_is_told_that_this_is_not_plain_redis(mutual: RedisServer) -> None:
    error = await refused({"url": f"redis://127.0.0.1:{mutual.port}"})
    assert error.trouble in (Trouble.NOT_REDIS, Trouble.UNREACHABLE)


@needs_redis_tls
async def test_a_file_that_is_no_certificate_is_named(mutual: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no")
    config = RedisClientConfig.model_validate({"url": mutual.url, "tls": {"ca_file": str(tmp_path / "ca.pem")}})
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        connect(config, "buffer", SystemClock())
