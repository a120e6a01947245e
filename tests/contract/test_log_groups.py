"""Groups and space: quotas, admission, the reserve, groups that come and go, dead letters."""

from __future__ import annotations

import asyncio
import logging

import pytest

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, DeadLetter, DeadReason, GroupBooks, LossReason, Rejection, Topic
from tests.contract.conftest import OpenLog, group
from tests.support.blocks import block, delivered

KIB = 1024


def size_of(padding_bytes: int) -> int:
    one = block([1000], padding_bytes=padding_bytes)
    return one.payload_bytes + len(one.header) + 8


async def books_of(opened: OpenLog, name: str) -> GroupBooks:
    (books,) = [books for books in await opened.log.group_books() if books.group == name]
    return books


async def fill(opened: OpenLog, topic: Topic = Topic.LOGS) -> int:
    """Append until the log admits no more; return how many blocks went in."""
    for number in range(10_000):
        if not opened.log.admitting:
            return number
        await opened.append(number, topic=topic, padding_bytes=1000)
    raise AssertionError("the log never filled up")


async def test_a_required_group_past_its_quota_stops_admission_and_loses_nothing(opened: OpenLog) -> None:
    log = await opened.open(group("a", quota_bytes=10 * KIB))
    count = await fill(opened)
    assert (count - 1) * size_of(1000) <= 10 * KIB + 100 < (count + 1) * size_of(1000)
    assert "a holds" in log.usage().reason
    with pytest.raises(LogError) as error:
        await opened.append(99)
    assert error.value.kind is ErrorKind.LOG_FULL
    waiting = asyncio.ensure_future(log.wait_admitting())
    await asyncio.sleep(0)
    assert not waiting.done()
    deliveries = await opened.read("a")
    assert delivered(deliveries) == list(range(count))
    await log.commit("a", acks=deliveries)
    async with asyncio.timeout(10):
        await waiting
    await opened.append(100)


async def test_a_required_group_past_its_quota_of_age_stops_admission(opened: OpenLog) -> None:
    log = await opened.open(group("a", quota_age_s=60.0))
    await opened.append(1)
    opened.clock.advance(61)
    await opened.append(2)
    assert not log.admitting
    await log.commit("a", acks=(await opened.read("a"))[:1])
    assert log.admitting


async def test_a_best_effort_group_past_its_quota_loses_its_oldest_blocks_counted(opened: OpenLog) -> None:
    log = await opened.open(group("best", required=False, quota_bytes=5 * size_of(1000)), group("needed"))
    await opened.append(*range(20), padding_bytes=1000)
    await opened.until(lambda: log.usage().groups[0].held_blocks == 5)
    assert log.admitting
    assert delivered(await opened.read("best")) == list(range(15, 20))
    assert delivered(await opened.read("needed")) == list(range(20)), "another group lost something"
    assert (await books_of(opened, "best")).dropped == {"quota": 15}


async def test_a_best_effort_group_keeps_what_is_being_sent(opened: OpenLog) -> None:
    log = await opened.open(group("best", required=False, quota_bytes=3 * size_of(1000)))
    await opened.append(0, 1, padding_bytes=1000)
    sending = await opened.read("best")
    await opened.append(*range(2, 12), padding_bytes=1000)
    await opened.until(lambda: log.usage().groups[0].held_blocks == 3)
    await log.commit("best", acks=sending)
    books = await books_of(opened, "best")
    assert (books.acked, books.dropped, books.held) == (2, {"quota": 9}, 1)


async def test_a_best_effort_group_loses_what_is_older_than_its_quota_of_age(opened: OpenLog) -> None:
    log = await opened.open(group("best", required=False, quota_age_s=60.0))
    await opened.append(1)
    opened.clock.advance(61)
    await opened.append(2)
    await opened.until(lambda: log.usage().groups[0].held_blocks == 1)
    assert delivered(await opened.read("best")) == [2]
    assert (await books_of(opened, "best")).dropped == {"quota": 1}


@pytest.mark.log_settings(max_bytes=100 * KIB)
async def test_a_full_log_stops_receivers_below_its_reserve(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await fill(opened)
    usage = log.usage()
    assert 0.85 <= usage.held_bytes / usage.limit_bytes < 0.88
    assert "kept for draining" in usage.reason


@pytest.mark.log_settings(max_bytes=100 * KIB)
async def test_a_full_log_always_drains_through_the_sampler(opened: OpenLog) -> None:
    log = await opened.open(group("sampler", Topic.TRACES_IN), group("exporter", Topic.TRACES))
    count = await fill(opened, Topic.TRACES_IN)
    arrived: list[int] = []
    while len(arrived) < count:
        # What was sampled leaves as fast as it can; the log stays full all the while.
        inputs = await opened.read("sampler", 4 * KIB)
        outputs = [block(delivered(inputs), topic="traces", padding_bytes=1000)]
        await log.commit("sampler", acks=inputs, outputs=outputs)
        if len(arrived) % 3 == 0:
            outputs_read = await opened.read("exporter", 8 * KIB)
            arrived += delivered(outputs_read)
            await log.commit("exporter", acks=outputs_read)
        else:
            outputs_read = await opened.read("exporter", 1)
            arrived += delivered(outputs_read)
            await log.commit("exporter", acks=outputs_read)
    assert arrived == list(range(count))
    assert log.admitting
    assert log.usage().held_bytes == 0


@pytest.mark.log_settings(max_bytes=100 * KIB)
async def test_the_reserve_is_not_for_commits_that_only_add(opened: OpenLog) -> None:
    log = await opened.open(group("sampler", Topic.TRACES_IN), group("exporter", Topic.TRACES))
    await fill(opened, Topic.TRACES_IN)
    with pytest.raises(LogError) as error:
        await log.commit("sampler", outputs=[block([1], topic="traces")])
    assert error.value.kind is ErrorKind.LOG_FULL
    await log.commit("sampler", state_puts={"key": b"value"})


@pytest.mark.log_settings(max_bytes=100 * KIB)
async def test_dead_letters_find_room_in_a_full_log(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await fill(opened)
    (delivery, *_) = await opened.read("a")
    letter = DeadLetter("a", DeadReason.REFUSED, "HTTP 400", bytes(memoryview(delivery.block)), delivery.block.header)
    await log.commit("a", rejections=[Rejection(delivery, [letter])])
    assert len(await log.dead_letters()) == 1


@pytest.mark.log_settings(max_bytes=100 * KIB)
async def test_a_best_effort_group_that_is_down_does_not_fill_the_log(opened: OpenLog) -> None:
    log = await opened.open(group("down", required=False), group("up"))
    for number in range(200):
        async with asyncio.timeout(10):
            await log.wait_admitting()
        await opened.append(number, padding_bytes=1000)
        await log.commit("up", acks=await opened.read("up"))
    books = await books_of(opened, "down")
    assert books.dropped[LossReason.QUOTA] == 200 - books.held > 0
    assert (await books_of(opened, "up")).acked == 200


async def test_a_new_group_begins_at_the_oldest_block_or_at_the_newest(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1, 2)
    await log.set_groups([group("a"), group("old", start="oldest"), group("new", start="newest")])
    await opened.append(3)
    assert delivered(await opened.read("old")) == [1, 2, 3]
    assert delivered(await opened.read("new")) == [3]


async def test_a_group_that_left_the_configuration_is_retired_loudly(opened: OpenLog, caplog: pytest.LogCaptureFixture) -> None:
    log = await opened.open(group("a"), group("gone"))
    await opened.append(1, 2)
    await log.commit("a", acks=await opened.read("a"))
    with caplog.at_level(logging.WARNING):
        await log.set_groups([group("a")])
    assert "gone" in caplog.text
    assert "retired" in caplog.text
    assert log.usage().held_bytes == 0, "what only the retired group held is freed"
    assert (await books_of(opened, "gone")).dropped == {"group_dropped": 2}


async def test_a_group_is_retired_at_a_start_without_it(opened: OpenLog, caplog: pytest.LogCaptureFixture) -> None:
    await opened.open(group("a"), group("gone"))
    await opened.append(1, 2)
    with caplog.at_level(logging.WARNING):
        log = await opened.reopen(group("a"))
    assert "gone" in caplog.text
    assert delivered(await opened.read("a")) == [1, 2]
    assert [usage.spec.name for usage in log.usage().groups] == ["a"]


async def test_a_renamed_group_finds_what_its_old_name_held(opened: OpenLog) -> None:
    log = await opened.open(group("dash0"))
    await opened.append(1, 2)
    await log.set_groups([group("dash0/eu")])
    assert delivered(await opened.read("dash0/eu")) == [1, 2]


async def test_only_what_nobody_takes_over_is_said_to_be_given_up(opened: OpenLog, caplog: pytest.LogCaptureFixture) -> None:
    if not opened.durable:
        pytest.skip("memory says who was retired, and not what that costs")
    log = await opened.open(group("sampler", Topic.TRACES_IN), group("red", Topic.TRACES_IN), group("file"), group("dash0"))
    await opened.append(*range(6), topic=Topic.TRACES_IN)
    await opened.append(*range(3))
    await log.commit("red", acks=(await opened.read("red"))[:2])
    with caplog.at_level(logging.WARNING):
        await log.set_groups([group("red", Topic.TRACES_IN), group("dash0")])
    given_up = [message for message in caplog.messages if "given up" in message]
    if opened.shards > 1:
        given_up.sort(reverse=True)  # who is in which shard, and so who is said first, is chance
    assert given_up == [
        "traces.in: group sampler is not in the configuration: 2 held blocks (2 records) are given up",
        "logs: group file is not in the configuration: 3 held blocks (3 records) are given up",
    ], "another deriver of the topic ends what it holds; another destination is another place"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        await log.set_groups([group("red/eu", Topic.TRACES_IN), group("dash0/eu")])
    assert not [message for message in caplog.messages if "given up" in message], "who has begun in its place finds it all"
    assert (await books_of(opened, "sampler")).dropped == {"group_dropped": 6}


async def test_a_log_can_be_opened_with_groups_that_follow_from_those_it_has(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b", Topic.EVENTS))
    await opened.append(1)
    if opened.durable:
        await opened.close()
        log = opened.log = opened._make()
    await log.open(lambda stored: [*sorted(stored, key=lambda spec: spec.name)[:1], group("c")])
    assert {usage.spec.name for usage in log.usage().groups} == {"a", "c"}
    assert delivered(await opened.read("c")) == [1]


async def test_who_holds_a_block_can_be_asked(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b"))
    offsets = await opened.append(1, 2, 3)
    deliveries = await opened.read("a")
    await log.commit("a", acks=deliveries[:1])
    log.defer(deliveries[2:])
    assert await log.held_by("a", offsets) == set(offsets[1:])
    assert await log.held_by("b", [*offsets, 1000]) == set(offsets)
    assert await log.held_by("nobody", offsets) == set()


async def test_a_group_that_reads_another_topic_finds_what_is_held_of_it(opened: OpenLog) -> None:
    log = await opened.open(group("a", Topic.LOGS), group("b", Topic.EVENTS))
    await opened.append(1, topic=Topic.EVENTS)
    await opened.append(2)
    in_flight = await opened.read("a")
    await log.set_groups([group("a", Topic.LOGS, Topic.EVENTS), group("b", Topic.EVENTS)])
    assert delivered(await opened.read("a")) == [1], "what is in flight is not handed out again"
    await log.commit("a", acks=in_flight)


async def test_the_stored_groups_can_be_opened_without_naming_them(opened: OpenLog) -> None:
    await opened.open(group("a", quota_bytes=1000, required=False, start="newest"), group("b", Topic.EVENTS, quota_age_s=5.0))
    await opened.reopen(*(usage.spec for usage in opened.log.usage().groups))
    specs = [usage.spec for usage in opened.log.usage().groups]
    await opened.close()
    opened.log = opened._make()
    await opened.log.open(None)
    assert sorted(opened.log.usage().groups, key=lambda usage: usage.spec.name)[0].spec == specs[0]
    assert {usage.spec for usage in opened.log.usage().groups} == set(specs)


async def test_reset_to_oldest_reads_everything_held_again(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b"))
    await opened.append(1, 2, 3)
    await log.commit("a", acks=(await opened.read("a"))[:2])
    await log.reset_group("a", "oldest")
    assert delivered(await opened.read("a")) == [1, 2, 3]


async def test_reset_to_newest_gives_up_what_is_held_counted(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1, 2)
    in_flight = await opened.read("a", 1)
    await log.reset_group("a", "newest")
    await opened.append(3)
    assert delivered(await opened.read("a")) == [3]
    await log.commit("a", acks=in_flight)
    assert (await books_of(opened, "a")).dropped == {"group_reset": 2}


async def test_a_dropped_group_frees_its_blocks_and_is_told_nothing_more(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b"))
    await opened.append(1)
    in_flight = await opened.read("b")
    await log.commit("a", acks=await opened.read("a"))
    await log.drop_group("b")
    assert log.usage().held_bytes == 0
    await log.commit("b", acks=in_flight)
    assert await log.read("b", 1 << 20) == []
    assert (await books_of(opened, "b")).dropped == {"group_dropped": 1}


@pytest.mark.log_settings(dead_max_bytes=1000)
async def test_dead_letters_past_their_size_go_oldest_first_counted(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    for number in range(5):
        letter = DeadLetter("forward", DeadReason.ENTRY_INVALID, f"entry {number}", b"x" * 300)
        await log.append(Append([], dead=[letter]))
    assert [letter.detail for _, letter in await log.dead_letters()] == ["entry 2", "entry 3", "entry 4"]
    assert log.usage().dead_bytes == 900
    assert (await books_of(opened, "dlq")).dropped == {"dead_limit": 2}


@pytest.mark.log_settings(dead_max_age_s=3600.0)
async def test_dead_letters_past_their_age_go_counted(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await log.append(Append([], dead=[DeadLetter("forward", DeadReason.ENTRY_INVALID, "old", b"x")]))
    opened.clock.advance(3601)
    await log.append(Append([], dead=[DeadLetter("forward", DeadReason.ENTRY_INVALID, "new", b"x")]))
    assert [letter.detail for _, letter in await log.dead_letters()] == ["new"]
    assert (await books_of(opened, "dlq")).dropped == {"dead_limit": 1}


async def test_dead_letters_are_listed_in_pages_and_deleted_by_id(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    letters = [
        DeadLetter("forward", DeadReason.BODY_INVALID, f"n {number}", b"p", b"h", number + 1, "10.0.0.7:1", 5, 2, 77) for number in range(5)
    ]
    await log.append(Append([], dead=letters))
    first = await log.dead_letters(2)
    rest = await log.dead_letters(10, after_id=first[-1][0])
    assert [letter for _, letter in first + rest] == letters
    await log.delete_dead_letters([first[0][0], 10_000])
    assert len(await log.dead_letters()) == 4
    assert (await books_of(opened, "dlq")).held == 2 + 3 + 4 + 5


async def test_usage_tells_how_far_each_group_is_behind(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b"))
    await opened.append(1)
    first = log.usage().oldest_append_unix_nano
    opened.clock.advance(10)
    await opened.append(2)
    await log.commit("a", acks=(await opened.read("a"))[:1])
    usage = {usage.spec.name: usage for usage in log.usage().groups}
    assert first == opened.clock.unix_nano() - 10_000_000_000
    assert (usage["b"].held_blocks, usage["b"].oldest_append_unix_nano) == (2, first)
    assert (usage["a"].held_blocks, usage["a"].oldest_append_unix_nano) == (1, opened.clock.unix_nano())
