"""The promises of the durable log, on every implementation: append, read, end, order, replay."""

from __future__ import annotations

import asyncio

import pytest

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, DeadReason, ReceiverBooks, Rejection, Topic
from tests.contract.conftest import OpenLog, group
from tests.support.blocks import block, delivered, unstorable


async def test_what_was_appended_is_delivered_in_order(opened: OpenLog) -> None:
    await opened.open(group("a"))
    await opened.append(1, 2, 3)
    await opened.append(4)
    assert delivered(await opened.read("a")) == [1, 2, 3, 4]


async def test_a_block_comes_back_as_it_was_given(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    given = block(range(50), codec="gzip")
    await log.append(Append([given]))
    (delivery,) = await opened.read("a")
    assert (delivery.block.header, bytes(memoryview(delivery.block))) == (given.header, bytes(memoryview(given)))


async def test_offsets_grow_and_are_never_used_again(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    first = await opened.append(1, 2)
    await log.commit("a", acks=await opened.read("a"))
    later = await opened.append(3)
    assert first[0] < first[1] < later[0], "a freed offset was used again"


async def test_an_append_is_invisible_until_it_is_durable(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    appending = asyncio.ensure_future(log.append(Append([block([1])])))
    assert await log.read("a", 1 << 20) == [] or appending.done()
    await appending
    assert delivered(await opened.read("a")) == [1]


async def test_an_open_log_answers_when_what_was_submitted_before_is_done(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    appending = asyncio.ensure_future(log.append(Append([block([1])])))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await log.answers()
    if not opened.kind.startswith("redis"):  # a server is not waited for
        assert appending.done()
    await appending


async def test_an_ack_frees_the_space(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1, 2)
    assert log.usage().held_bytes > 0
    await log.commit("a", acks=await opened.read("a"))
    assert log.usage().held_bytes == 0


async def test_space_is_freed_only_when_every_group_has_ended_the_block(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b"))
    await opened.append(1)
    held = log.usage().held_bytes
    await log.commit("a", acks=await opened.read("a"))
    assert log.usage().held_bytes == held
    await log.commit("b", acks=await opened.read("b"))
    assert log.usage().held_bytes == 0


async def test_a_slow_group_does_not_delay_another(opened: OpenLog) -> None:
    log = await opened.open(group("slow"), group("fast"))
    stuck = []
    for number in range(20):
        await opened.append(number)
        if number == 0:
            stuck = await opened.read("slow")
        deliveries = await opened.read("fast")
        assert delivered(deliveries) == [number]
        await log.commit("fast", acks=deliveries)
    assert delivered(stuck) == [0]
    assert delivered(await opened.read("slow")) == list(range(1, 20))


async def test_a_read_gives_at_most_the_bytes_asked_for_but_always_one_block(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1, 2, 3, padding_bytes=1000)
    assert delivered(await log.read("a", 1)) == [1]
    assert delivered(await log.read("a", 2500)) == [2, 3]


async def test_a_delivery_is_not_handed_out_twice_while_it_is_in_flight(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1)
    first = await opened.read("a")
    assert await log.read("a", 1 << 20) == []
    assert log.usage().groups[0].in_flight_blocks == 1
    await log.commit("a", acks=first)


async def test_two_readers_of_a_group_share_its_blocks(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(*range(40))
    halves = await asyncio.gather(*(log.read("a", 4000) for _ in range(12)))
    assert sorted(number for half in halves for number in delivered(half)) == list(range(40))


async def test_deferred_blocks_return_before_newer_ones_and_in_order(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1, 2, 3)
    first = await opened.read("a")
    await opened.append(4)
    log.defer([first[2], first[0]])
    again = await opened.read("a")
    assert delivered(again) == [1, 3, 4]
    assert [delivery.attempts for delivery in again] == [1, 1, 0]


async def test_a_delivery_dropped_without_a_word_is_deferred(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1)
    deliveries = await opened.read("a")
    del deliveries
    async with asyncio.timeout(10):
        await log.wait_readable("a")
    assert delivered(await opened.read("a")) == [1]


async def test_a_restart_replays_exactly_what_was_not_ended(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b"))
    await opened.append(1, 2, 3, 4)
    deliveries = await opened.read("a")
    await log.commit("a", acks=[deliveries[1]])
    log = await opened.reopen(group("a"), group("b"))
    assert delivered(await opened.read("a")) == [1, 3, 4]
    assert delivered(await opened.read("b")) == [1, 2, 3, 4]


async def test_waiting_to_read_ends_with_an_append(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    waiting = asyncio.ensure_future(log.wait_readable("a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    await opened.append(1)
    async with asyncio.timeout(10):
        await waiting


async def test_an_append_is_all_or_nothing(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    good_beside = log.append(Append([block([9])], books=[ReceiverBooks("forward", 1, 1)]))
    broken = log.append(Append([block([1]), unstorable()], books=[ReceiverBooks("forward", 7, 7)]))
    results = await asyncio.gather(good_beside, broken, return_exceptions=True)
    assert isinstance(results[1], TypeError)
    assert delivered(await opened.read("a")) == [9], "a part of a failed append took effect, or one beside it did not"
    assert await log.receiver_books() == [ReceiverBooks("forward", 1, 1)]
    if opened.durable:
        await opened.reopen(group("a"))
        assert delivered(await opened.read("a")) == [9], "the failed append stands in the file"


async def test_a_topic_that_no_group_reads_is_not_written(opened: OpenLog) -> None:
    await opened.open(group("a", Topic.LOGS))
    assert list(await opened.append(1, topic=Topic.EVENTS)) == [-1]
    assert opened.log.usage().held_bytes == 0


async def test_a_group_reads_only_its_topics(opened: OpenLog) -> None:
    await opened.open(group("logs"), group("events", Topic.EVENTS), group("both", Topic.LOGS, Topic.EVENTS))
    await opened.append(1)
    await opened.append(2, topic=Topic.EVENTS)
    assert delivered(await opened.read("logs")) == [1]
    assert delivered(await opened.read("events")) == [2]
    assert delivered(await opened.read("both")) == [1, 2]


async def test_a_chunk_is_known_for_an_hour_and_forgotten_later(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    chunk, other = ChunkKey("peer", b"c1"), ChunkKey("other", b"c1")
    assert await log.seen([chunk]) == set()
    await log.append(Append([block([1])], chunks=[chunk]))
    assert await log.seen([chunk, other]) == {chunk}, "a chunk id is its peer's alone"
    opened.clock.advance(3590)
    assert await log.seen([chunk]) == {chunk}
    opened.clock.advance(7200)
    assert await log.seen([chunk]) == set()


async def test_a_chunk_is_known_after_a_restart(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    chunk = ChunkKey("peer", b"c1")
    await log.append(Append([block([1])], chunks=[chunk]))
    log = await opened.reopen(group("a"))
    assert await log.seen([chunk]) == {chunk}


async def test_a_checkpoint_moves_with_its_append(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    assert await log.checkpoint_get("file") is None
    await log.append(Append([block([1])], checkpoints={"file": b"10"}))
    await log.append(Append([block([2])], checkpoints={"file": b"20"}))
    assert await log.checkpoint_get("file") == b"20"


async def test_a_closed_log_refuses_everything(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1)
    deliveries = await opened.read("a")
    await opened.close()
    assert not log.admitting
    for refused in (log.append(Append([block([2])])), log.commit("a", acks=deliveries), log.read("a", 1)):
        with pytest.raises(LogError) as error:
            await refused
        assert error.value.kind is ErrorKind.LOG_CLOSED


async def test_rejected_rows_become_dead_letters_in_the_same_commit(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await log.append(Append([block([1, 2, 3])]))
    (delivery,) = await opened.read("a")
    letter = DeadLetter("exporter", DeadReason.REFUSED, "HTTP 400", b"row 2", records=1, attempts=3)
    await log.commit("a", rejections=[Rejection(delivery, [letter])])
    assert [kept for _, kept in await log.dead_letters()] == [letter]
    (books,) = [books for books in await log.group_books() if books.group == "a"]
    assert (books.acked, books.dead) == (2, 1)
    assert log.usage().held_bytes == 0


async def test_receivers_books_add_up_over_appends_and_restarts(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    for _ in range(3):
        books = ReceiverBooks("forward", received=10, appended=5, invalid=2, refused=1, dropped=1, duplicate=1)
        await log.append(Append([block([1])], books=[books]))
    assert await log.receiver_books() == [ReceiverBooks("forward", 30, 15, 6, 3, 3, 3)]
    log = await opened.reopen(group("a"))
    assert await log.receiver_books() == [ReceiverBooks("forward", 30, 15, 6, 3, 3, 3)]
