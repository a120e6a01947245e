"""What only a log in Redis promises: operations whose answer was lost, one owner of a shard, several processes, a server that forgets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection

from emp_pipe.buffers.redis import RedisLog
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, ChunkKey, ReceiverBooks, Topic
from tests.contract.conftest import group
from tests.contract.redis_logs import Make, check_books, logs_of, read, until
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis
SAMPLER, OUT = group("sampler", Topic.TRACES_IN), group("out", Topic.TRACES)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendfsync="always") as started:
        yield started


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def make(server: RedisServer, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Make]:
    async with logs_of(server.url, clock, tmp_path) as one:
        yield one


def lose_answers(log: RedisLog, count: int) -> list[int]:
    """Let Redis do the next operations and lose its answers."""
    link = log.shard.link
    exchange, left = link._exchange, [count]

    async def lossy(commands: Any) -> Any:
        replies = await exchange(commands)
        if left[0] > 0 and any(b"seq" in part for command in commands for part in command if isinstance(part, bytes)):
            left[0] -= 1
            raise LostConnection("the answer is lost")
        return replies

    link._exchange = lossy  # type: ignore[method-assign]
    return left


async def test_an_append_whose_answer_was_lost_takes_effect_once(make: Make) -> None:
    log = make()
    await log.open([group("a")])
    left = lose_answers(log, 2)
    books = [ReceiverBooks("r", received=1, appended=1)]
    await asyncio.gather(*(log.append(Append([block([number])], books=books)) for number in range(5)))
    assert left == [0]
    assert await log.receiver_books() == [ReceiverBooks("r", received=5, appended=5)]
    assert delivered(await read(log, "a")) == [0, 1, 2, 3, 4]
    await check_books(log)


async def test_a_commit_whose_answer_was_lost_derives_once(make: Make) -> None:
    log = make()
    await log.open([SAMPLER, OUT])
    await log.append(Append([block([1], topic="traces.in")]))
    inputs = await read(log, "sampler")
    left = lose_answers(log, 1)
    await log.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")], state_puts={"k": b"v"})
    assert left == [0]
    assert delivered(await read(log, "out")) == [100]
    assert await log.read("sampler", 1 << 20) == []
    assert await log.state_get("sampler", "k") == b"v"
    acked = {books.group: (books.acked, books.held) for books in await log.group_books()}
    assert (acked["sampler"], acked["out"]) == ((1, 0), (0, 1)), "what a look had counted was counted once more"
    await check_books(log)


async def test_an_operation_that_comes_late_on_an_old_connection_has_no_effect(make: Make) -> None:
    log = make()
    await log.open([group("a")])
    call = log.shard.calls.append(Append([block([1])]), 1, 0)
    straggler = log.shard.link.command(call, log.shard.queue.next_number())
    await log.append(Append([block([2])]))
    (reply,) = await log.shard.link.send([straggler])
    assert reply[0] == b"old"
    assert delivered(await read(log, "a")) == [2]


async def test_what_was_acknowledged_survives_a_sigkill_of_redis_and_the_log_goes_on(make: Make, server: RedisServer) -> None:
    log = make()
    await log.open([group("a")])
    for number in range(20):
        await log.append(Append([block([number])]))
    in_flight = (await read(log, "a"))[:5]
    server.kill()
    await until(lambda: not log.admitting)
    assert "cannot be used since" in log.usage().reason
    committing = asyncio.ensure_future(log.commit("a", acks=in_flight))
    server.start()
    await committing
    async with asyncio.timeout(30):
        await log.wait_admitting()
    await log.append(Append([block([20])]))
    assert log.usage().groups[0].held_records == 16
    await check_books(log)


async def test_while_redis_is_away_an_append_fails_in_time_and_nothing_is_lost_of_what_was_told(make: Make, server: RedisServer) -> None:
    log = make(patience_s=0.2)
    await log.open([group("a")])
    server.kill()
    with pytest.raises(LogError) as error:
        await log.append(Append([block([1])]))
    assert error.value.kind is ErrorKind.LOG_IO
    assert not log.admitting
    server.start()
    async with asyncio.timeout(30):
        await log.wait_admitting()
    await log.append(Append([block([2])]))
    assert delivered(await read(log, "a")) == [2]


async def test_what_came_back_and_cannot_be_read_is_said_and_asked_again(make: Make, server: RedisServer) -> None:
    log = make(prefix="spoiled")
    await log.open([group("a")])
    async with Redis.from_url(server.url) as client:
        before = await client.hget("{spoiled.0}:meta", "format")
        await client.hset("{spoiled.0}:meta", "format", "not ours")
    server.kill()
    await until(lambda: bool(log.away))
    server.start()
    await until(lambda: "not ours" in log.away)
    async with Redis.from_url(server.url) as client:
        await client.hset("{spoiled.0}:meta", "format", before)
    async with asyncio.timeout(30):
        await log.wait_admitting()
    await log.append(Append([block([1])]))
    assert delivered(await read(log, "a")) == [1]


async def test_a_full_redis_refuses_an_append_whole_and_still_takes_a_commit_that_acks(make: Make, server: RedisServer) -> None:
    log = make()
    await log.open([SAMPLER, OUT])
    await log.append(Append([block([1], topic="traces.in"), block([2], topic="traces.in")]))
    inputs = await read(log, "sampler")
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory", 1)
        before = [await client.hgetall(log.shard.keys.base + name) for name in ("meta", "books")]
        with pytest.raises(LogError) as error:
            await log.append(Append([block([3], topic="traces.in")], books=[ReceiverBooks("r", 1, 1)], chunks=[ChunkKey("p", b"c")]))
        assert error.value.kind is ErrorKind.LOG_FULL
        after = [await client.hgetall(log.shard.keys.base + name) for name in ("meta", "books")]
        assert [{**one, b"until": b""} for one in after] == [{**one, b"until": b""} for one in before], "it was half done"
    assert await log.seen([ChunkKey("p", b"c")]) == set(), "a failed append would be taken for a repeat"
    await log.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")], state_puts={"k": b"v"})
    assert delivered(await read(log, "out")) == [100]
    await until(lambda: "maxmemory" in log.usage().reason)
    assert not log.admitting
    await check_books(log)


async def test_another_process_appends_and_the_owner_delivers_and_counts_it(make: Make) -> None:
    owner, other = make(lease_s=3600.0), make()
    await owner.open([group("a")])
    await other.open([group("a")])
    owner.shard.lease.ask = lambda *_: asyncio.Event().wait()  # type: ignore[method-assign,assignment,return-value]  # it must be told
    await asyncio.sleep(1.1)
    waiting = asyncio.ensure_future(owner.wait_readable("a"))
    await other.append(Append([block([1])], books=[ReceiverBooks("r", 1, 1)]))
    async with asyncio.timeout(30):
        await waiting
    await owner.append(Append([block([2])], books=[ReceiverBooks("r", 1, 1)]))
    await until(lambda: owner.usage().groups[0].held_records == 2)
    assert sorted(delivered(await read(owner, "a"))) == [1, 2]
    assert await other.read("a", 1 << 20) == [], "who does not own the shard reads nothing"
    await until(lambda: other.usage().groups[0].held_records == 2)
    assert await owner.receiver_books() == [ReceiverBooks("r", 2, 2)]
    await check_books(owner)
    await check_books(other)


async def take_over(first: RedisLog, second: RedisLog) -> None:
    """The first owner hangs and says nothing; the second waits for its lease to end."""
    first.shard.lease.ask = lambda *_: asyncio.Event().wait()  # type: ignore[method-assign,assignment,return-value]
    assert first._sharing is not None
    first._sharing.cancel()
    async with asyncio.timeout(30):
        await second.shard.owned.wait()


async def test_a_shard_is_taken_over_when_its_owner_is_silent_and_what_that_still_sends_has_no_effect(make: Make) -> None:
    first, second = make(lease_s=1.0), make(lease_s=1.0)
    await first.open([SAMPLER, OUT])
    await second.open([SAMPLER, OUT])
    await first.append(Append([block([1], topic="traces.in")]))
    inputs = await read(first, "sampler")
    assert not second.shard.owned.is_set()
    await take_over(first, second)
    again = await read(second, "sampler")
    assert delivered(again) == [1], "what was in flight is delivered by the new owner"
    with pytest.raises(LogError) as error:
        await first.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")])
    assert error.value.kind is ErrorKind.LOG_STALE
    assert not first.shard.owned.is_set()
    await second.commit("sampler", acks=again, outputs=[block([200], topic="traces")])
    assert delivered(await read(second, "out")) == [200]
    await check_books(second)


@pytest.mark.parametrize("whose", ["an earlier lease of its own", "a lease that another has"])
async def test_the_script_itself_refuses_a_commit_whose_epoch_or_owner_is_not_that_of_the_lease(make: Make, whose: str) -> None:
    first, second = make(lease_s=3600.0), make(lease_s=3600.0)
    await first.open([SAMPLER, OUT])
    await second.open([SAMPLER, OUT])
    await first.append(Append([block([1], topic="traces.in")]))
    ending = first.shard.ledger.endings("sampler", await read(first, "sampler"), (), {}, derives=True)
    sender, epoch = (first, first.shard.view.epoch) if whose.startswith("an earlier") else (second, first.shard.view.epoch)
    if sender is first:
        await first.shard.lease.release()
        first.shard._stands(await first.shard.lease.ask())
        await first.shard.queue.wait_idle()
        assert first.shard.view.epoch not in (epoch, b"")
    sent = sender.shard.calls.commit("sampler", 1, ending, [block([100], topic="traces")], {"k": b"v"}, None, ())
    sent.arguments["epoch"] = epoch
    (reply,) = await sender.shard.link.send([sender.shard.link.command(sent, sender.shard.queue.next_number())])
    assert reply[0] == b"stale"
    assert delivered(await read(first, "sampler")) == [1]
    assert await first.shard.held_by("out", range(10)) == set()
    assert await first.state_items("sampler") == {}
    await check_books(first)


async def test_an_owner_that_renews_its_lease_keeps_the_shard(make: Make) -> None:
    first, second = make(lease_s=2.0), make(lease_s=2.0)
    await first.open([group("a")])
    await second.open([group("a")])
    await asyncio.sleep(3.0)
    assert first.shard.owned.is_set()
    assert not second.shard.owned.is_set()


async def test_a_process_that_ends_hands_its_shard_over_at_once(make: Make, clock: ManualClock) -> None:
    first, second = make(lease_s=3600.0), make(lease_s=3.0)
    await first.open([group("a")])
    await second.open([group("a")])
    await first.close(clock.monotonic_s() + 10)
    async with asyncio.timeout(30):
        await second.shard.owned.wait()


async def test_nothing_is_derived_from_state_that_was_read_under_an_earlier_lease(make: Make) -> None:
    log = make()
    await log.open([group("a")])
    await log.state_items("a")
    log.shard.lost_lease("another")
    async with asyncio.timeout(30):
        await log.shard.owned.wait()
    log.shard.view.epoch = b"99"
    with pytest.raises(LogError, match="state was read before"):
        await log.commit("a", state_puts={"k": b"v"})


async def test_a_chunk_that_another_replica_has_appended_meanwhile_is_not_written_again(make: Make) -> None:
    first, second = make(), make()
    await first.open([group("a")])
    await second.open([group("a")])
    chunk = ChunkKey("peer", b"c")
    await first.append(Append([block([1])], chunks=[chunk]))
    with pytest.raises(LogError) as error:
        await second.append(Append([block([1])], chunks=[chunk]))
    assert error.value.fields["seen"]
    assert delivered(await read(first, "a")) == [1]


async def test_a_group_is_retired_when_no_configuration_has_named_it_for_a_day(make: Make, clock: ManualClock) -> None:
    log = make()
    await log.open([group("a"), group("gone")])
    await log.append(Append([block([1])]))
    await log.set_groups([group("a")])
    clock.advance(86_399)
    await log.set_groups([group("a")])
    assert {usage.spec.name for usage in log.usage().groups} == {"a", "gone"}
    clock.advance(1)
    await log.set_groups([group("a")])
    assert {usage.spec.name for usage in log.usage().groups} == {"a"}
    await check_books(log)


async def test_after_a_flushall_a_new_log_is_begun_loudly_and_goes_on(make: Make, server: RedisServer, caplog: Any) -> None:
    log = make()
    await log.open([group("a")])
    offset = (await log.append(Append([block([1])]))).offsets[0]
    in_flight = await read(log, "a")
    async with Redis.from_url(server.url) as client:
        await client.flushall()
    with caplog.at_level(logging.ERROR):
        await log.append(Append([block([2])]))
    assert "lost the whole buffer" in caplog.text
    (delivery,) = await read(log, "a")
    assert delivered([delivery]) == [2]
    assert delivery.offset > offset, "an offset was used again"
    await log.commit("a", acks=in_flight)
    assert log.usage().groups[0].held_records == 1
    await check_books(log)


async def test_a_buffer_of_a_newer_version_is_refused_with_advice(make: Make, server: RedisServer, clock: ManualClock) -> None:
    log = make()
    await log.open([group("a")])
    await log.close(clock.monotonic_s() + 10)
    async with Redis.from_url(server.url) as client:
        await client.hset(log.shard.keys.meta, "format", "99")
    with pytest.raises(LogError) as error:
        await make().open([group("a")])
    assert error.value.kind is ErrorKind.LOG_NEWER
    assert "later one" in error.value.advice


async def test_a_checkpoint_of_an_earlier_epoch_does_not_replace_a_later_one(make: Make) -> None:
    log = make()
    await log.open([group("a")])
    log.shard.checkpoint_epoch = 2
    await log.append(Append([], checkpoints={"file": b"20"}))
    log.shard.checkpoint_epoch = 1
    await log.append(Append([], checkpoints={"file": b"10"}))
    assert await log.checkpoint_get("file") == b"20"
