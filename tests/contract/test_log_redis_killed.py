"""A Redis that is killed in the middle of what it writes, and again; and what became of operations whose answers went down with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoScriptError

from emp_pipe.buffers.redis import RedisLog
from emp_pipe.buffers.redis_client import RedisLogError
from emp_pipe.errors import LogError
from emp_pipe.log.protocol import Append, ReceiverBooks, Topic
from tests.contract.conftest import OpenLog, group
from tests.contract.redis_logs import check_books, logs_of, read, until
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.redis_cluster import ask
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

_A_TENTH_S = 100_000
"""For each key, in the microseconds of `rdb-key-save-delay`: a file that takes its time."""
AFTER_ITS_BLOCKS, AT_ITS_END = b"HINCRBY", b"PEXPIREAT"


def is_numbered(commands: Any) -> bool:
    return any(b"seq" in part for command in commands for part in command if isinstance(part, bytes))


def replace_next(log: RedisLog, exchange: Callable[[Any, Any], Any]) -> list[bool]:
    """Let the next pipeline of operations go another way; what is returned is filled once it did."""
    link = log.shard.link
    before, went = link._exchange, list[bool]()

    async def once(commands: Any) -> Any:
        if went or not is_numbered(commands):
            return await before(commands)
        went.append(True)
        return await exchange(before, commands)

    link._exchange = once  # type: ignore[method-assign]
    return went


def die_while_writing(log: RedisLog, server: RedisServer, first: bytes, inside: bytes) -> list[bool]:
    """Kill Redis in the middle of the script that begins with a command, while it writes another one of it; leave it dead. What is
    returned is filled once it is."""

    died = list[bool]()

    async def die(exchange: Any, commands: Any) -> Any:
        await exchange(commands)
        await asyncio.to_thread(server.kill)
        (file,) = server.directory.rglob("*.incr.aof")
        written = file.read_bytes()
        file.write_bytes(written[: written.index(inside, written.rindex(first)) + 3])
        died.append(True)
        raise LostConnection("killed")

    replace_next(log, die)
    return died


def child_of(server: RedisServer) -> int:
    """Return the process that writes the file."""
    (child,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(child)


async def check_stored(log: RedisLog, server: RedisServer) -> None:
    from redis.asyncio import Redis

    async with Redis.from_url(server.url, decode_responses=True, encoding_errors="replace") as client:
        await OpenLog._check_shard(client, log.shard.keys.base)


@pytest.mark.parametrize("inside", [AFTER_ITS_BLOCKS, AT_ITS_END])
async def test_an_append_of_which_a_killed_redis_wrote_half_never_comes_back_in_place_of_a_later_one(tmp_path: Path, inside: bytes) -> None:
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, ManualClock(), tmp_path, patience_s=0.2, lease_s=2.0) as make:
            log = make()
            await log.open([group("a")])
            await log.append(Append([block([1])], books=[ReceiverBooks("r", 1, 1)]))
            died = die_while_writing(log, server, b"XADD", inside)
            with pytest.raises(LogError):
                await log.append(Append([block([2])], books=[ReceiverBooks("r", 1, 1)]))
            assert died
            server.start()
            assert "short read while loading" in server.said
            async with asyncio.timeout(30):
                await log.wait_admitting()
            await log.append(Append([block(range(3, 6))], books=[ReceiverBooks("r", 3, 3)]))
            server.restart()
            second = make()
            await log.close(0)
            await second.open([group("a")])
            deliveries = await read(second, "a")
            assert delivered(deliveries) == [1, 3, 4, 5], "what was acknowledged is lost, or what was not has come back"
            await second.commit("a", acks=deliveries)
            (books,) = (books for books in await second.group_books() if books.group == "a")
            assert (books.appended, books.acked, books.held) == (4, 4, 0)
            await check_books(second)
            await check_stored(second, server)


async def test_an_ack_of_which_a_killed_redis_wrote_half_ends_nothing(tmp_path: Path) -> None:
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, ManualClock(), tmp_path, lease_s=2.0) as make:
            first, second, third = make(), make(), make()
            await first.open([group("a")])
            await first.append(Append([block(range(10))]))
            deliveries = await read(first, "a")
            died = die_while_writing(first, server, b"ZREM\r", AFTER_ITS_BLOCKS)
            committing = asyncio.ensure_future(first.commit("a", acks=deliveries))
            async with asyncio.timeout(30):
                while not died:  # noqa: ASYNC110 (the server's death)
                    await asyncio.sleep(0.01)
            await first.close(0)  # it dies too, before it could ask again
            await asyncio.wait([committing])
            server.start()
            assert "short read while loading" in server.said
            ask(server, "HSET", first.shard.keys.meta, "until", 0)
            await second.open([group("a")])
            await second.append(Append([block([10])]))
            server.restart()
            await second.close(0)
            ask(server, "HSET", first.shard.keys.meta, "until", 0)
            await third.open([group("a")])
            assert delivered(await read(third, "a")) == list(range(11)), "what nobody has ended is gone"
            await check_books(third)
            await check_stored(third, server)


async def test_nothing_is_done_before_the_file_has_been_written_anew_and_the_start_waits_for_it(tmp_path: Path, monkeypatch: Any) -> None:
    clock = ManualClock()
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, clock, tmp_path) as make:
            first, second = make(), make()
            await first.open([group("a")])
            await first.append(Append([block([1])]))
            await first.close(clock.monotonic_s() + 5)
            server.restart()
            ask(server, "CONFIG", "SET", "rdb-key-save-delay", _A_TENTH_S)
            monkeypatch.setattr("emp_pipe.buffers.redis_file._WITHIN_S", 0.05)
            changes = ask(server, "INFO", "persistence")["rdb_changes_since_last_save"]
            second.shard.link._sha = first.shard.link._sha  # as a process that did not hear of the restart
            with pytest.raises(RedisLogError, match="writing its append-only file anew") as error:
                await second.open([group("a")])
            assert error.value.passing, "a start would not wait for it"
            with pytest.raises(RedisLogError, match="started anew"):
                await second.shard.lease.ask()
            about = ask(server, "INFO", "persistence")
            assert about["aof_rewrite_in_progress"], "it was over too soon to say anything"
            assert about["rdb_changes_since_last_save"] == changes
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(RedisLogError):
                        await second.open([group("a")])
                        break
            about = ask(server, "INFO", "persistence")
            assert (about["aof_rewrite_in_progress"], about["aof_last_bgrewrite_status"]) == (0, "ok")
            assert delivered(await read(second, "a")) == [1]


async def test_a_redis_that_fails_to_write_its_file_anew_is_said_and_the_log_goes_on(tmp_path: Path, caplog: Any) -> None:
    clock = ManualClock()
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, clock, tmp_path) as make:
            first, second, third = make(), make(), make()
            await first.open([group("a")])
            await first.append(Append([block([1])]))
            await first.close(clock.monotonic_s() + 5)
            server.restart()
            ask(server, "CONFIG", "SET", "rdb-key-save-delay", 600 * _A_TENTH_S)
            with caplog.at_level(logging.WARNING):
                opening = asyncio.ensure_future(second.open([group("a")]))
                await until(lambda: ask(server, "INFO", "persistence")["aof_rewrite_in_progress"])
                os.kill(child_of(server), signal.SIGKILL)
                await opening
            assert "cannot be written anew after its start (Redis says that it failed" in caplog.text
            assert delivered(await read(second, "a")) == [1]
            await third.open([group("a")])
            assert any("could not write its append-only file anew" in warning for warning in third.warnings)
            assert not ask(server, "INFO", "persistence")["aof_rewrite_in_progress"], "it is begun again and again"


async def test_where_the_file_cannot_be_written_anew_it_is_said_and_the_log_goes_on(tmp_path: Path, caplog: Any) -> None:
    with RedisServer(appendfsync="always", users={"default": "on nopass ~* &* +@all -bgrewriteaof"}) as server:
        async with logs_of(server.url, ManualClock(), tmp_path) as make:
            log = make()
            with caplog.at_level(logging.WARNING):
                await log.open([group("a")])
            assert "cannot be written anew" in caplog.text
            assert "+bgrewriteaof" in caplog.text
            await log.append(Append([block([1])]))
            assert delivered(await read(log, "a")) == [1]


async def test_what_never_reached_redis_is_done_when_it_is_asked_again(tmp_path: Path) -> None:
    """Nothing that a log does of its own when Redis is back may make the numbers of what waits old."""
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, ManualClock(), tmp_path) as make:
            log = make()
            await log.open([group("a")])

            async def lose(exchange: Any, commands: Any) -> Any:
                raise LostConnection("killed before it was read")

            lost = replace_next(log, lose)
            await log.append(Append([block([1])]))
            assert lost
            deliveries = await read(log, "a")
            assert delivered(deliveries) == [1]
            lost = replace_next(log, lose)
            await log.commit("a", acks=deliveries)
            assert lost
            await check_books(log)


async def test_what_was_done_is_not_done_again_when_the_server_first_answers_that_it_does_not_know_the_script(tmp_path: Path) -> None:
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, ManualClock(), tmp_path) as make:
            log = make()
            await log.open([group("sampler", Topic.TRACES_IN), group("out", Topic.TRACES)])
            forgot = list[bool]()

            async def forget(exchange: Any, commands: Any) -> Any:
                return [NoScriptError("NOSCRIPT No matching script") for _ in commands]

            async def lose(exchange: Any, commands: Any) -> Any:
                await exchange(commands)
                forgot.append(True)
                raise LostConnection("the answer is lost")

            unknown = replace_next(log, forget)
            unknown.append(True)  # first the answer is lost
            lost = replace_next(log, lose)
            committing = asyncio.ensure_future(log.commit("sampler", outputs=[block([100], topic="traces")], state_puts={"k": b"v"}))
            async with asyncio.timeout(30):
                while not lost:  # noqa: ASYNC110 (another task)
                    await asyncio.sleep(0)
            unknown.clear()
            await committing
            assert forgot
            assert unknown
            assert delivered(await read(log, "out")) == [100], "it was derived twice"
            await check_books(log)
