"""`commit`, the one atomic primitive: outputs, acks and state together or not at all, and exact replay of what derives."""

from __future__ import annotations

import asyncio

import pytest

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, DeadLetter, DeadReason, Rejection, Topic
from tests.contract.conftest import OpenLog, group
from tests.support.blocks import block, delivered, unstorable


async def derive(opened: OpenLog, count: int = 1) -> None:
    """Open a log with a sampler between `traces.in` and an exporter of `traces`, and append some input."""
    await opened.open(group("sampler", Topic.TRACES_IN), group("exporter", Topic.TRACES))
    await opened.append(*range(count), topic=Topic.TRACES_IN)


async def test_outputs_acks_and_state_take_effect_together(opened: OpenLog) -> None:
    await derive(opened)
    log = opened.log
    inputs = await opened.read("sampler")
    await log.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")], state_puts={"verdict": b"keep"}, state_deletes=["old"])
    assert delivered(await opened.read("exporter")) == [100]
    assert await log.state_get("sampler", "verdict") == b"keep"
    assert await log.read("sampler", 1 << 20) == []


async def test_a_commit_that_fails_changes_nothing(opened: OpenLog) -> None:
    await derive(opened)
    log = opened.log
    inputs = await opened.read("sampler")
    outputs = [block([100], topic="traces"), unstorable("traces")]
    with pytest.raises(TypeError):
        await log.commit("sampler", acks=inputs, outputs=outputs, state_puts={"verdict": b"keep"})
    assert await log.state_get("sampler", "verdict") is None
    assert await log.read("exporter", 1 << 20) == []
    log.defer(inputs)
    assert delivered(await opened.read("sampler")) == [0], "the input was acked although the commit failed"


async def test_a_restart_between_emit_and_ack_derives_nothing_twice(opened: OpenLog) -> None:
    await derive(opened, 3)
    inputs = await opened.read("sampler")
    offset = str(inputs[1].offset).encode()
    await opened.log.commit("sampler", acks=inputs[:2], outputs=[block([100], topic="traces")], state_puts={"through_offset": offset})
    specs = group("sampler", Topic.TRACES_IN), group("exporter", Topic.TRACES)
    log = await opened.reopen(*specs)
    assert delivered(await opened.read("exporter")) == [100]
    again = await opened.read("sampler")
    assert delivered(again) == [2], "exactly the input that was not acked is replayed"
    assert await log.state_get("sampler", "through_offset") == offset


async def test_nothing_can_be_derived_from_a_delivery_that_was_taken_back(opened: OpenLog) -> None:
    await derive(opened)
    log = opened.log
    inputs = await opened.read("sampler")
    await log.reset_group("sampler", "oldest")
    with pytest.raises(LogError) as error:
        await log.commit("sampler", acks=inputs, outputs=[block([100], topic="traces")])
    assert error.value.kind is ErrorKind.LOG_STALE
    assert await log.read("exporter", 1 << 20) == []
    assert delivered(await opened.read("sampler")) == [0]


async def test_of_two_commits_that_derive_from_one_delivery_one_takes_effect(opened: OpenLog) -> None:
    await derive(opened)
    log = opened.log
    inputs = await opened.read("sampler")
    commits = [log.commit("sampler", acks=inputs, outputs=[block([number], topic="traces")]) for number in (100, 200)]
    results = await asyncio.gather(*commits, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), LogError]
    assert delivered(await opened.read("exporter")) == [100]


async def test_an_ack_of_what_was_deferred_does_not_count(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1)
    deliveries = await opened.read("a")
    log.defer(deliveries)
    await log.commit("a", acks=deliveries)
    assert delivered(await opened.read("a")) == [1], "a late ack ended a block that was to be sent again"


async def test_a_delivery_cannot_end_twice_in_one_commit(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await opened.append(1)
    (delivery,) = await opened.read("a")
    with pytest.raises(ValueError, match="twice"):
        await log.commit("a", acks=[delivery], rejections=[Rejection(delivery, [])])


async def test_an_unknown_group_is_a_mistake(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    with pytest.raises(ValueError, match="no group 'b'"):
        await log.commit("b", state_puts={"key": b"value"})


async def test_state_is_the_groups_own_and_found_by_prefix(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b"))
    await log.commit("a", state_puts={"job/1": b"one", "job/2": b"two", "other": b"three"})
    await log.commit("b", state_puts={"job/1": b"mine"})
    assert await log.state_items("a", "job/") == {"job/1": b"one", "job/2": b"two"}
    assert len(await log.state_items("a")) == 3
    assert await log.state_get("b", "job/1") == b"mine"
    await log.commit("a", state_deletes=["job/1"])
    assert await log.state_get("a", "job/1") is None


async def test_state_ends_with_its_time(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await log.commit("a", state_puts={"short": b"1"}, state_ttl_s=60)
    await log.commit("a", state_puts={"long": b"2"})
    opened.clock.advance(59)
    assert await log.state_get("a", "short") == b"1"
    opened.clock.advance(2)
    assert await log.state_items("a") == {"long": b"2"}


async def test_state_survives_a_restart(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await log.commit("a", state_puts={"key": b"value"}, state_ttl_s=60)
    log = await opened.reopen(group("a"))
    assert await log.state_get("a", "key") == b"value"
    opened.clock.advance(61)
    assert await log.state_get("a", "key") is None


async def test_skipped_and_acked_rows_are_told_apart(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    await log.append(Append([block(range(10))]))
    (delivery,) = await opened.read("a")
    letter = DeadLetter("a", DeadReason.EXPIRED, "older than 6 h", b"row", records=2)
    await log.commit("a", rejections=[Rejection(delivery, [letter])], skipped_records={delivery.offset: 3})
    (books,) = [books for books in await log.group_books() if books.group == "a"]
    assert (books.appended, books.acked, books.skipped, books.dead, books.held) == (10, 5, 3, 2, 0)


async def test_derived_rows_count_as_appended_on_their_own_topic(opened: OpenLog) -> None:
    await derive(opened)
    inputs = await opened.read("sampler")
    await opened.log.commit("sampler", acks=inputs, outputs=[block([100, 101], topic="traces")])
    books = {books.group: books for books in await opened.log.group_books()}
    assert (books["exporter"].appended, books["exporter"].held) == (2, 2)
    assert (books["sampler"].appended, books["sampler"].acked) == (1, 1)
    assert await opened.log.receiver_books() == []
