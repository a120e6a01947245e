"""The promises of a log in Redis with a spool: what was acknowledged while Redis was away gets there, once, and the books say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, DeadReason, ReceiverBooks
from tests.support.blocks import block
from tests.support.cutting_proxy import CuttingProxy
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.spooled_log import PATIENCE_S, Central

pytestmark = needs_redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendfsync="always") as started:
        yield started


@pytest.fixture
async def central(server: RedisServer, tmp_path: Path) -> AsyncIterator[Central]:
    one = Central(server, tmp_path)
    await one.start()
    yield one
    await one.stop()


async def test_while_redis_is_here_nothing_goes_to_the_spool(central: Central) -> None:
    await central.append(1)
    assert central.log.says.state == "idle"
    assert await central.everything() == [1]
    assert central.log.says.spooled_records == 0


async def test_what_comes_while_redis_is_away_is_acknowledged_from_the_spool_and_drains_in_order(central: Central) -> None:
    await central.append(1)
    central.server.kill()
    await central.append(2)
    await central.append(3)
    assert central.log.says.state == "spooling"
    await central.check_books()
    central.server.start()
    await central.until_drained()
    await central.check_books()
    assert await central.everything() == [1, 2, 3]


# exactly once


async def test_an_append_whose_answer_was_lost_is_acknowledged_from_the_spool_and_there_once(server: RedisServer, tmp_path: Path) -> None:
    with CuttingProxy(server.port) as proxy:
        central = Central(server, tmp_path, url=proxy.url)
        await central.start()
        proxy.cut(b"append", then_refuse=True)
        await central.append(1)
        assert proxy.cuts == 1
        await central.append(2)
        assert central.log.spool is not None
        assert central.log.spool.entries == 2
        await central.check_books()
        proxy.mend()
        await central.until_drained()
        await central.check_books()
        assert await central.everything() == [1, 2]
        assert central.log.drain is not None
        assert (central.log.drain.counts.known, central.log.drain.counts.drained) == (1, 1)
        await central.stop()


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_kill_between_redis_append_and_the_spools_ack_neither_loses_nor_doubles(
    server: RedisServer, tmp_path: Path, shards: int
) -> None:
    central = Central(server, tmp_path, shards=shards)
    await central.start()
    central.server.kill()
    for number in range(5):
        await central.append(number)
    assert central.log.spool is not None
    tried = asyncio.Event()

    async def never(*_: Any) -> None:
        tried.set()
        await asyncio.Event().wait()

    central.log.spool.end = never  # type: ignore[method-assign]
    central.server.start()
    async with asyncio.timeout(PATIENCE_S):
        while not tried.is_set():
            await asyncio.sleep(0.01)
            central.clock.advance(0.05)
    await central.check_books()
    await central.stop()
    await central.start()
    await central.check_books()
    await central.until_drained()
    await central.check_books()
    assert central.log.drain is not None
    assert (central.log.drain.counts.known, central.log.drain.counts.drained) == (5, 0)
    assert sorted(await central.everything()) == [0, 1, 2, 3, 4]
    await central.stop()


async def test_an_append_over_several_shards_that_was_cut_short_is_completed(server: RedisServer, tmp_path: Path) -> None:
    """Some of its chunks are in Redis, the token is not: the rest follows, and what is there does not come again."""
    with CuttingProxy(server.port) as proxy:
        central = Central(server, tmp_path, url=proxy.url, shards=3)
        await central.start()
        blocks = [block([number]) for number in range(12)]
        books = [ReceiverBooks("forward", received=12, appended=12)]
        chunks = [ChunkKey("edge", one.block_id.encode()) for one in blocks]
        proxy.cut(b"append", then_refuse=True)
        await central.log.append(Append(blocks, books=books, chunks=chunks))
        central.acked += range(12)
        proxy.mend()
        await central.until_drained()
        assert sorted(await central.everything()) == list(range(12))
        (found,) = await central.log.receiver_books()
        assert (found.received, found.appended + found.duplicate) == (12, 12)
        await central.stop()


async def test_what_redis_may_have_forgotten_meanwhile_is_counted_as_unproven(central: Central) -> None:
    """More than an hour lies between a try whose answer was lost and the drain: nobody knows, so it is appended, and said."""
    central.server.pause()
    await central.append(1)  # Redis has it in its socket, and does it when it goes on
    central.server.kill()
    central.clock.advance(3601)
    central.server.start()
    await central.until_drained()
    assert central.log.drain is not None
    assert central.log.drain.counts.unproven == 1
    assert set(await central.everything()) == {1}


async def test_a_redis_that_hangs_is_not_waited_for_longer_than_said(central: Central) -> None:
    central.server.pause()
    before_s = asyncio.get_running_loop().time()
    await central.append(1)
    assert asyncio.get_running_loop().time() - before_s < 5
    await central.append(2)
    central.server.resume()
    await central.until_drained()
    assert await central.everything() == [1, 2]
    await central.check_books()


async def test_a_drain_that_fails_as_nobody_expected_says_so_and_goes_on(
    central: Central, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    central.server.kill()
    await central.until(lambda: bool(central.log.away))  # else its first try is on its way to Redis
    await central.append(1)

    async def failing(append: Append) -> Any:
        raise ValueError("not to be stored")

    with monkeypatch.context() as patch:
        patch.setattr(central.log.remote, "append", failing)
        central.server.start()
        await central.until(lambda: "not to be stored" in central.log.details["spool"]["trouble"])
        assert "the spool waits: not to be stored" in caplog.text
    await central.until_drained()
    assert await central.everything() == [1]
    await central.check_books()


async def test_a_redis_that_came_back_empty_gets_all_that_the_spool_holds(central: Central) -> None:
    await central.append(1)
    assert await central.everything() == [1]
    central.server.kill()
    await central.append(2)
    for path in central.server.directory.glob("appendonlydir/*"):
        path.unlink()
    central.server.start()
    await central.until_drained()
    assert await central.everything() == [2]


async def test_books_count_each_record_once_at_every_moment_of_a_drain(central: Central) -> None:
    central.server.kill()
    for number in range(600):
        await central.append(number)
    central.server.start()
    looked = 0
    async with asyncio.timeout(PATIENCE_S):
        while central.log.says.state != "idle":
            await central.check_books()
            looked += 1
            central.clock.advance(0.05)
            await asyncio.sleep(0)
    await central.check_books()
    assert looked > 3
    assert await central.everything() == list(range(600))


# repeats


async def test_a_chunk_that_was_spooled_is_known_for_a_repeat_while_redis_is_away(central: Central) -> None:
    chunk, other = ChunkKey("edge", b"c1"), ChunkKey("edge", b"c2")
    central.server.kill()
    await central.append(1, chunks=[chunk])
    assert await central.log.seen([chunk, other]) == {chunk}
    assert central.log.says.unchecked_chunks == 1, "what only Redis can know is counted"
    central.server.start()
    await central.until_drained()
    assert await central.log.seen([chunk, other]) == {chunk}
    assert await central.everything() == [1]


async def test_a_repeat_of_what_only_redis_knows_is_found_when_it_drains(central: Central) -> None:
    chunk = ChunkKey("edge", b"c1")
    first = block([1])
    await central.append(1, block=first, chunks=[ChunkKey("edge", first.block_id.encode())])
    central.server.kill()
    await central.append(1, block=first, chunks=[ChunkKey("edge", first.block_id.encode())])
    await central.append(2, chunks=[chunk])
    central.server.start()
    await central.until_drained()
    assert await central.everything() == [1, 2]
    (books,) = await central.log.receiver_books()
    assert (books.received, books.appended, books.duplicate) == (3, 2, 1)
    assert books.balanced


async def test_a_repeat_among_others_in_one_append_is_left_out_alone(central: Central) -> None:
    blocks = [block([number]) for number in range(3)]
    keys = [ChunkKey("edge", one.block_id.encode()) for one in blocks]
    await central.append(1, block=blocks[1], chunks=[keys[1]])
    central.server.kill()
    books = [ReceiverBooks("forward", received=3, appended=3)]
    await central.log.append(Append(blocks, books=books, chunks=keys))
    central.server.start()
    await central.until_drained()
    assert sorted(await central.everything()) == [0, 1, 2]
    (found,) = await central.log.receiver_books()
    assert (found.received, found.appended, found.duplicate) == (4, 3, 1)


# what goes with blocks


async def test_dead_letters_and_appends_without_blocks_drain_too(central: Central) -> None:
    central.server.kill()
    letter = DeadLetter("forward", DeadReason.FRAME_INVALID, "torn", b"\x01\x02", records=2, peer="10.0.0.1", time_unix_nano=7)
    books = [ReceiverBooks("forward", received=2, invalid=2)]
    await central.log.append(Append([], books=books, dead=[letter]))
    central.server.start()
    await central.until_drained()
    assert [found for _, found in await central.log.dead_letters()] == [letter]
    assert await central.log.receiver_books() == books


async def test_a_checkpoint_is_answered_from_the_spool_and_then_from_redis(central: Central) -> None:
    await central.append(1, checkpoints={"tail": b"1"})
    central.server.kill()
    await central.append(2, checkpoints={"tail": b"2"})
    assert await central.log.checkpoint_get("tail") == b"2"
    central.server.start()
    await central.until_drained()
    assert await central.log.checkpoint_get("tail") == b"2"
    await central.append(3, checkpoints={"tail": b"3"})
    assert await central.log.checkpoint_get("tail") == b"3"


async def test_a_checkpoint_of_an_old_spool_does_not_move_a_newer_one_back(central: Central) -> None:
    central.server.kill()
    await central.append(1, checkpoints={"tail": b"1"})
    await central.stop()
    central.server.start()
    central.clock.advance(60)
    (central.directory / "spool").rename(central.directory / "away")  # its volume was not there
    await central.start()
    await central.append(2, checkpoints={"tail": b"2"})
    await central.stop()
    (central.directory / "away").rename(central.directory / "spool2")
    await central.start(directory=central.directory / "spool2")
    await central.until_drained()
    assert await central.log.checkpoint_get("tail") == b"2"
    assert sorted(await central.everything()) == [1, 2]


async def test_a_block_that_cannot_be_read_back_becomes_a_dead_letter_of_the_log(central: Central) -> None:
    central.server.kill()
    await central.append(1)
    await central.append(2)
    await central.stop()
    connection = apsw.Connection(str(central.directory / "spool" / "log.db"))
    connection.execute("UPDATE blocks SET header=x'00' WHERE offset=(SELECT min(offset) FROM blocks)")
    connection.close()
    central.server.start()
    await central.start()
    await central.until_drained()
    assert await central.everything() == [2]
    async with asyncio.timeout(PATIENCE_S):
        while not (letters := await central.log.dead_letters()):  # noqa: ASYNC110 (what it waits for happens at the server)
            await asyncio.sleep(0.01)
    ((_, letter),) = letters
    assert (letter.reason, letter.records) == (DeadReason.BLOCK_INVALID, 1)
