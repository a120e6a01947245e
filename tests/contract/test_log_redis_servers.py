"""What servers do to a log in Redis: a slot that moves, a primary that dies, data of an earlier moment, replicas that are behind."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from emp_pipe.buffers.redis import RedisLog
from emp_pipe.buffers.redis_link import end_tasks
from emp_pipe.buffers.redis_queue import Operation
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, ChunkKey, ReceiverBooks, Topic
from tests.contract.conftest import group
from tests.contract.redis_logs import check_books, logs_of, read, send, take, until
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.redis_cluster import RedisCluster, RedisPair, ask
from tests.support.redis_server import RedisServer, needs_redis, version

pytestmark = needs_redis
needs_waitaof = pytest.mark.skipif(
    version() < (7, 2), reason="not run: WAITAOF came with Redis 7.2 (to run it put a redis-server of 7.2 or later first on PATH)"
)
_COUNT = 300


async def check_all_came_once(log: RedisLog, found: list[int]) -> None:
    """Every number was acknowledged, delivered and counted: once."""
    assert sorted(found) == list(range(_COUNT))
    assert await log.receiver_books() == [ReceiverBooks("r", _COUNT, _COUNT)]
    (books,) = (books for books in await log.group_books() if books.group == "a")
    assert (books.appended, books.acked, books.held) == (_COUNT, _COUNT, 0)
    await check_books(log)


async def test_a_slot_that_moves_to_another_node_and_back_under_appends_and_commits_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with RedisCluster(appendfsync="always") as cluster:
        async with logs_of(cluster.url, ManualClock(), tmp_path, cluster=True, lease_s=2.0) as make:
            log = make()
            await log.open([group("a")])
            key = log.shard.keys.meta
            first = cluster.node_of(key)
            target = next(node for node in cluster.nodes if node is not first)
            taking = asyncio.create_task(take(log, "a", _COUNT))
            met: list[str] = []
            for part, (start, end) in enumerate(((0, 100), (100, 200), (200, _COUNT))):
                sending = asyncio.create_task(send(log, range(start, end)))
                if part < 2:
                    await asyncio.sleep(0.05)
                    await asyncio.to_thread(cluster.move, key, (target, first)[part], lambda: met.append(log.shard.away))
                    assert cluster.node_of(key) is (target, first)[part]
                async with asyncio.timeout(90):
                    await sending
            await check_all_came_once(log, await taking)


async def test_a_cluster_node_that_dies_and_is_replaced_by_its_replica_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with RedisCluster(appendfsync="always") as cluster:
        async with logs_of(cluster.url, ManualClock(), tmp_path, cluster=True, lease_s=2.0, wait_replicas=1) as make:
            log = make()
            for node in list(cluster.nodes):
                await asyncio.to_thread(cluster.add_replica, node)
            await log.open([group("a")])
            dying = cluster.node_of(log.shard.keys.meta)
            taking = asyncio.create_task(take(log, "a", _COUNT))
            await send(log, range(100))
            sending = asyncio.create_task(send(log, range(100, _COUNT)))
            await asyncio.sleep(0.05)
            dying.kill()
            async with asyncio.timeout(90):
                await until(lambda: cluster.node_of(log.shard.keys.meta) in cluster.replicas)
                # the new primary has no replica of its own, and nothing is acknowledged without one
                await asyncio.to_thread(dying.start)
                await sending
            await check_all_came_once(log, await taking)


# data of an earlier moment


def keep(server: RedisServer, kept: Path) -> None:
    """Copy what a server has on its disk at this moment; it syncs before each answer."""
    shutil.copytree(server.directory / "appendonlydir", kept) if version() >= (7, 0) else shutil.copy(
        server.directory / "appendonly.aof", kept
    )


def put_back(server: RedisServer, kept: Path) -> None:
    """Kill a server and start it with what was kept."""
    server.kill()
    if version() >= (7, 0):
        shutil.rmtree(server.directory / "appendonlydir")
        shutil.copytree(kept, server.directory / "appendonlydir")
    else:
        shutil.copy(kept, server.directory / "appendonly.aof")
    server.start()


async def hear_nothing(log: RedisLog) -> None:
    """The process does not notice by itself that its server was another for a moment: the next operation meets it."""
    await end_tasks(task for task in log.shard._tasks if task.get_name().endswith(("bell", "lease", "look")))


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "met by an operation"])
async def test_a_server_with_older_data_is_said_and_no_offset_is_used_again_and_the_books_are_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, noticed: bool
) -> None:
    def one(number: int) -> Append:
        return Append([block([number])], books=[ReceiverBooks("r", 1, 1)], chunks=[ChunkKey("peer", str(number).encode())])

    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, ManualClock(), tmp_path) as make:
            log = make()
            await log.open([group("a")])
            for number in range(5):
                await log.append(one(number))
            keep(server, tmp_path / "kept")
            await log.commit("a", acks=await read(log, "a"))
            highest = 0
            for number in range(5, 9):
                highest = (await log.append(one(number))).offsets[0]
            in_flight = await read(log, "a")
            if not noticed:
                await hear_nothing(log)
            put_back(server, tmp_path / "kept")
            if noticed:
                await until(lambda: "came back without the last 5 operations" in caplog.text and log.admitting)
            # what the server still knows is known for a repeat; what it has lost is taken again
            assert await log.seen([ChunkKey("peer", str(number).encode()) for number in range(9)]) == {
                ChunkKey("peer", str(number).encode()) for number in range(5)
            }
            offsets = [(await log.append(one(number))).offsets[0] for number in (7, 8)]
            assert "came back without the last 5 operations" in caplog.text
            assert min(offsets) > highest, "an offset was used again"
            await log.commit("a", acks=in_flight)
            again = await read(log, "a")
            assert delivered(again) == [0, 1, 2, 3, 4, 7, 8], "reading did not begin anew"
            await log.commit("a", acks=again)
            assert await log.receiver_books() == [ReceiverBooks("r", 7, 7)]
            (books,) = (books for books in await log.group_books() if books.group == "a")
            assert (books.appended, books.acked, books.held) == (7, 7, 0)
            await check_books(log)


async def test_nothing_is_derived_from_a_memory_of_what_the_server_has_lost(tmp_path: Path) -> None:
    sampler = group("sampler", Topic.TRACES_IN)
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, ManualClock(), tmp_path) as make:
            log = make()
            await log.open([sampler])
            assert await log.state_items("sampler") == {}
            keep(server, tmp_path / "kept")
            await log.commit("sampler", state_puts={"decided": b"1"})
            put_back(server, tmp_path / "kept")
            with pytest.raises(LogError, match="state was read before") as error:
                await log.commit("sampler", state_puts={"decided": b"2"})
            assert error.value.kind is ErrorKind.LOG_STALE
            assert await log.state_items("sampler") == {}
            await log.commit("sampler", state_puts={"decided": b"2"})
            assert await log.state_get("sampler", "decided") == b"2"


async def test_who_owned_a_shard_in_what_the_server_has_lost_does_not_own_it_now(tmp_path: Path) -> None:
    """Epochs of what was lost are given again: the owner's name tells two of them apart."""
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, ManualClock(), tmp_path, lease_s=3600.0) as make:
            first, second = make(), make()
            await first.open([group("a")])
            await first.append(Append([block([1])]))
            deliveries = await read(first, "a")
            await hear_nothing(first)
            ask(server, "HSET", first.shard.keys.meta, "owner", "another", "until", 0)
            await second.open([group("a")])
            await second.shard.lease.release()
            ask(server, "HSET", first.shard.keys.meta, "owner", "another", "epoch", first.shard.view.epoch)
            with pytest.raises(LogError) as error:
                await first.commit("a", acks=deliveries, state_puts={"k": b"v"})
            assert error.value.kind is ErrorKind.LOG_STALE


# replicas and disks that are waited for


async def test_an_append_that_no_replica_has_is_not_acknowledged_and_is_there_once_when_one_has_it(tmp_path: Path) -> None:
    with RedisPair(appendfsync="always") as pair:
        async with logs_of(pair.primary.url, ManualClock(), tmp_path, wait_replicas=1, wait_timeout_s=0.2, patience_s=0.5) as make:
            log = make()
            await log.open([group("a")])
            await log.append(Append([block([0])]))
            pair.replica.pause()
            with pytest.raises(LogError, match="0 of 1 replicas have what was written") as error:
                await log.append(Append([block([1])], chunks=[ChunkKey("peer", b"1")]))
            assert error.value.kind is ErrorKind.LOG_IO
            assert not log.admitting
            pair.replica.resume()
            async with asyncio.timeout(30):
                await log.wait_admitting()
            await send(log, range(1, 3))
            assert delivered(await read(log, "a")) == [0, 1, 2], "the one that was in doubt is there once"
            pair.fail_over()
            held = ask(pair.replica, "ZCARD", log.shard.keys.held("a"))
            assert held == 3, "what was acknowledged was not at the replica"


async def test_a_chunk_that_no_replica_has_is_not_said_to_be_known(tmp_path: Path) -> None:
    """Whoever hears that it is known acknowledges it, or forgets it: a failover would lose it then."""
    chunk, other = ChunkKey("peer", b"1"), ChunkKey("peer", b"2")
    with RedisPair(appendfsync="always") as pair:
        async with logs_of(pair.primary.url, ManualClock(), tmp_path, wait_replicas=1, wait_timeout_s=0.2, patience_s=0.5) as make:
            first, second = make(), make()
            await first.open([group("a")])
            await second.open([group("a")])
            pair.replica.pause()
            with pytest.raises(LogError, match="0 of 1 replicas"):
                await first.append(Append([block([1])], chunks=[chunk]))
            with pytest.raises(LogError, match="0 of 1 replicas"):
                await second.seen([chunk])
            assert await second.seen([other]) == set()
            pair.replica.resume()
            async with asyncio.timeout(30):
                await first.wait_admitting()
            assert await second.seen([chunk, other]) == {chunk}
            pair.fail_over()
            assert ask(pair.replica, "EXISTS", first.shard.keys.chunk(chunk)) == 1


@needs_waitaof
async def test_what_is_acknowledged_is_on_the_disk_where_waitaof_is_asked_for(tmp_path: Path) -> None:
    def asked(server: RedisServer) -> int:
        return int(ask(server, "INFO", "commandstats").get("cmdstat_waitaof", {}).get("calls", 0))

    with RedisServer(appendfsync="everysec") as server:
        async with logs_of(server.url, ManualClock(), tmp_path, wait_aof=True, patience_s=0.5, wait_timeout_s=5) as make:
            log = make()
            await log.open([group("a")])
            assert "neither a power cut nor a SIGKILL of Redis loses anything" in log.durability
            for number in range(3):
                before = asked(server)
                await log.append(Append([block([number])]))
                assert asked(server) > before, "it was not asked whether the disk has it"
            before = asked(server)
            await log.commit("a", acks=await read(log, "a"))
            assert asked(server) > before
            ask(server, "CONFIG", "SET", "appendonly", "no")
            with pytest.raises(LogError, match="WAITAOF"):
                await log.append(Append([block([3])]))
            ask(server, "CONFIG", "SET", "appendonly", "yes")
            async with asyncio.timeout(30):
                await log.wait_admitting()
            await send(log, range(4, 5))


# what takes a server long


@pytest.mark.parametrize("what", ["drop", "reset", "retire"])
async def test_a_group_is_emptied_a_slice_at_a_time_and_one_that_was_cut_short_is_counted_to_the_unit_and_goes_on(
    tmp_path: Path, what: str
) -> None:
    async def empty(log: RedisLog) -> None:
        if what == "drop":
            await log.drop_group("a")
        elif what == "reset":
            await log.reset_group("a", "newest")
        else:
            await log.set_groups([group("b")])

    with RedisServer(appendfsync="no") as server:
        async with logs_of(server.url, ManualClock(), tmp_path, retire_after_s=0) as make:
            first, second = make(), make()
            await first.open([group("a"), group("b")])
            await first.append(Append([block([number]) for number in range(700)]))
            submit, left = first.shard._submit, [2]

            def submit_two(operation: Operation) -> asyncio.Future[object]:
                if left[0] == 0:
                    raise RuntimeError("killed")
                left[0] -= 1
                return submit(operation)

            first.shard._submit = submit_two  # type: ignore[method-assign]
            with pytest.raises(RuntimeError, match="killed"):
                await empty(first)
            assert ask(server, "ZCARD", first.shard.keys.held("a")) == 700 - 2 * 250, "a script emptied more than a slice, or less"
            await first.close(ManualClock().monotonic_s() + 10)
            await second.open([group("a"), group("b")])
            held = {usage.spec.name: usage.held_records for usage in second.usage().groups}
            assert held == {"a": 200, "b": 700}
            await check_books(second)
            await empty(second)
            reason = "group_reset" if what == "reset" else "group_dropped"
            (books,) = (books for books in await second.group_books() if books.group == "a")
            assert (books.appended, books.held, books.dropped) == (700, 0, {reason: 700})
            assert len(await read(second, "b")) == 700, "another group lost something by it"
            await check_books(second)


async def test_what_is_appended_while_a_group_is_reset_to_the_newest_stays_with_it(tmp_path: Path) -> None:
    with RedisServer(appendfsync="no") as server:
        async with logs_of(server.url, ManualClock(), tmp_path) as make:
            log = make()
            await log.open([group("a")])
            await log.append(Append([block([number]) for number in range(300)]))
            submit, appends = log.shard._submit, list[asyncio.Task[object]]()

            def submit_after_an_append(operation: Operation) -> asyncio.Future[object]:
                if operation.size_bytes:
                    return submit(operation)
                first_slice = not appends
                future = submit(operation) if first_slice else None
                appends.append(asyncio.ensure_future(log.append(Append([block([1000 + len(appends)])]))))
                return future or asyncio.ensure_future(after(appends[0], operation))

            async def after(append: asyncio.Task[object], operation: Operation) -> object:
                await append
                return await submit(operation)

            log.shard._submit = submit_after_an_append  # type: ignore[method-assign]
            await log.reset_group("a", "newest")
            await asyncio.gather(*appends)
            assert delivered(await read(log, "a")) == [1000, 1001]
            await check_books(log)
