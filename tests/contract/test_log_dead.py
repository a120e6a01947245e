"""Dead letters on every log: which are listed, what is counted, and the way back to the one group that gave them up."""

from __future__ import annotations

from typing import Any

import pytest

from emp_pipe._core import Block
from emp_pipe.log.dead_letters import way_back
from emp_pipe.log.protocol import Append, DeadCount, DeadFilter, DeadLetter, DeadReason, GroupBooks, Rejection, Revival, Topic
from tests.contract.conftest import OpenLog, group
from tests.support.blocks import block, delivered


def letter_of(given: Block, component: str = "a", reason: DeadReason = DeadReason.REFUSED, **fields: Any) -> DeadLetter:
    """Return a dead letter with the rows of a block."""
    return DeadLetter(component, reason, "HTTP 400", bytes(memoryview(given)), given.header, given.records, **fields)


async def bury(opened: OpenLog, *letters: DeadLetter) -> list[int]:
    """Keep letters as dead; return their ids."""
    before = [id for id, _ in await opened.log.dead_letters(10_000)]
    await opened.log.append(Append([], dead=letters))
    return [id for id, _ in await opened.log.dead_letters(10_000, max(before, default=0))]


async def revive(opened: OpenLog, *ids: int) -> list[int]:
    """Send letters back as the command does."""
    revivals = []
    for id, letter in await opened.log.dead_letters(100, which=DeadFilter(ids=frozenset(ids))):
        back = way_back(id, letter, [usage.spec for usage in opened.log.usage().groups])
        assert isinstance(back, Revival), back
        revivals.append(back)
    return await opened.log.revive_dead_letters(revivals)


async def books_of(opened: OpenLog, name: str) -> GroupBooks:
    (books,) = [books for books in await opened.log.group_books() if books.group == name]
    return books


async def test_rows_go_back_to_the_group_that_gave_them_up_and_to_no_other(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("b"))
    await log.append(Append([block([1, 2])]))
    (delivery,) = await opened.read("a")
    await log.commit("b", acks=await opened.read("b"))
    await log.commit("a", rejections=[Rejection(delivery, [letter_of(delivery.block)])])
    ((id, _),) = await log.dead_letters()
    assert await revive(opened, id) == [id]
    assert await log.dead_letters() == []
    assert await log.read("b", 1 << 20) == [], "a destination that has the rows got them again"
    again = await opened.read("a")
    assert delivered(again) == [1, 2]
    await log.commit("a", acks=again)
    books, dead = await books_of(opened, "a"), await books_of(opened, "dlq")
    assert (books.appended, books.dead, books.acked) == (4, 2, 2), "they count as appended once more"
    assert (dead.appended, dead.acked, dead.held) == (2, 2, 0)
    assert (log.usage().held_bytes, log.usage().dead_bytes) == (0, 0)


async def test_a_letter_goes_back_only_once_however_often_it_is_asked(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    (id,) = await bury(opened, letter_of(block([7])))
    ((_, letter),) = await log.dead_letters()
    back = way_back(id, letter, [group("a")])
    assert isinstance(back, Revival)
    assert await log.revive_dead_letters([back, back]) == [id]
    assert await log.revive_dead_letters([back]) == []
    assert delivered(await opened.read("a")) == [7]
    assert await log.read("a", 1 << 20) == []


async def test_what_went_back_is_there_after_a_restart_for_its_group_alone(opened: OpenLog) -> None:
    await opened.open(group("a"), group("b"))
    ids = await bury(opened, letter_of(block([1])), letter_of(block([2])))
    await revive(opened, ids[0])
    log = await opened.reopen(group("a"), group("b"))
    assert delivered(await opened.read("a")) == [1]
    assert await log.read("b", 1 << 20) == []
    assert [id for id, _ in await log.dead_letters()] == [ids[1]]
    assert (await books_of(opened, "a")).held == 1


async def test_what_goes_back_comes_behind_what_waits_and_among_what_is_new(opened: OpenLog) -> None:
    await opened.open(group("a"))
    await opened.append(1)
    (id,) = await bury(opened, letter_of(block([2])))
    await revive(opened, id)
    await opened.append(3)
    assert delivered(await opened.read("a")) == [1, 2, 3]


async def test_a_letter_whose_group_is_gone_or_reads_other_topics_stays_a_dead_letter(opened: OpenLog) -> None:
    log = await opened.open(group("a"), group("events", Topic.EVENTS))
    ids = await bury(opened, letter_of(block([1]), "gone"), letter_of(block([2]), "events"))
    revivals = [Revival(id, name, block([9])) for id, name in zip(ids, ("gone", "events"), strict=True)]
    assert await log.revive_dead_letters(revivals) == []
    assert [id for id, _ in await log.dead_letters()] == ids
    assert log.usage().held_bytes == 0


async def test_parts_of_one_block_come_back_under_ids_of_their_own(opened: OpenLog) -> None:
    await opened.open(group("a"))
    ids = await bury(opened, *(letter_of(block([number]).with_block_id("b-7.expired")) for number in (1, 2)))
    await revive(opened, *ids)
    back = [delivery.block.block_id for delivery in await opened.read("a")]
    assert len(set(back)) == 2, f"a receiver that remembers ids would take one for a repeat of the other: {back}"


async def test_a_full_log_still_takes_what_goes_back(opened: OpenLog) -> None:
    log = await opened.open(group("a", quota_bytes=1))
    (id,) = await bury(opened, letter_of(block([1])))
    await opened.append(2)
    assert not log.admitting
    assert await revive(opened, id) == [id]


async def test_bytes_that_were_never_rows_have_no_way_back_and_are_told_why(opened: OpenLog) -> None:
    await opened.open(group("a"))
    torn = letter_of(block([1]))
    torn = DeadLetter("a", DeadReason.BLOCK_INVALID, "", torn.payload[:-3], torn.header)
    gone, elsewhere = letter_of(block([1]), "gone"), letter_of(block([1], topic="events"))
    for letter, why in (
        (DeadLetter("forward", DeadReason.ENTRY_INVALID, "", b"\xc1"), "never rows"),
        (DeadLetter("forward", DeadReason.FRAME_INVALID, "", b"\xc1"), "never rows"),
        (torn, "cannot be read"),
        (gone, "no destination gone"),
        (elsewhere, "does not take events"),
    ):
        back = way_back(5, letter, [group("a")])
        assert isinstance(back, str)
        assert why in back


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (DeadFilter(), [0, 1, 2, 3]),
        (DeadFilter(component="b"), [1, 3]),
        (DeadFilter(reason=DeadReason.EXPIRED), [2, 3]),
        (DeadFilter(since_unix_nano=20), [1, 2, 3]),
        (DeadFilter(until_unix_nano=30), [0, 1]),
        (DeadFilter(since_unix_nano=20, until_unix_nano=40), [1, 2]),
        (DeadFilter(component="b", reason=DeadReason.EXPIRED), [3]),
        (DeadFilter(component="' OR 1=1 --"), []),
        (DeadFilter(ids=frozenset()), []),
    ],
)
async def test_dead_letters_are_found_by_component_reason_and_time(opened: OpenLog, which: DeadFilter, found: list[int]) -> None:
    await opened.open(group("a"))
    refused, expired = DeadReason.REFUSED, DeadReason.EXPIRED
    ids = await bury(
        opened,
        *(
            DeadLetter(component, reason, "", b"x", time_unix_nano=time)
            for component, reason, time in (("a", refused, 10), ("b", refused, 20), ("a", expired, 30), ("b", expired, 40))
        ),
    )
    listed = [id for id, _ in await opened.log.dead_letters(100, which=which)]
    assert listed == [ids[index] for index in found]
    assert [id for id, _ in await opened.log.dead_letters(1, which=which)] == listed[:1]
    after = listed[0] if listed else 0
    assert [id for id, _ in await opened.log.dead_letters(100, after, which)] == listed[1:]


async def test_dead_letters_are_found_by_their_ids(opened: OpenLog) -> None:
    await opened.open(group("a"))
    ids = await bury(opened, *(DeadLetter("a", DeadReason.REFUSED, "", b"x") for _ in range(4)))
    wanted = DeadFilter(ids=frozenset([ids[1], ids[3], 9_999]))
    assert [id for id, _ in await opened.log.dead_letters(100, which=wanted)] == [ids[1], ids[3]]


@pytest.mark.log_settings(dead_max_bytes=200)
async def test_usage_counts_dead_letters_by_component_and_reason(opened: OpenLog) -> None:
    log = await opened.open(group("a"))
    ids = await bury(
        opened,
        DeadLetter("a", DeadReason.REFUSED, "", b"x" * 30, records=2),
        DeadLetter("a", DeadReason.REFUSED, "", b"x" * 50, b"h" * 5, records=3),
        DeadLetter("b", DeadReason.EXPIRED, "", b"x" * 70, records=4),
    )
    both, other = DeadCount("a", DeadReason.REFUSED, 2, 5, 85), DeadCount("b", DeadReason.EXPIRED, 1, 4, 70)
    assert (list(log.usage().dead), log.usage().dead_limit_bytes) == ([both, other], 200)
    assert await log.delete_dead_letters([ids[2], 9_999]) == 1
    assert list(log.usage().dead) == [both]
    await bury(opened, DeadLetter("b", DeadReason.REFUSED, "", b"x" * 140, records=1))
    kept = [DeadCount("a", DeadReason.REFUSED, 1, 3, 55), DeadCount("b", DeadReason.REFUSED, 1, 1, 140)]
    assert list(log.usage().dead) == kept, "the oldest went for want of space"
    if opened.durable:
        assert list((await opened.reopen(group("a"))).usage().dead) == kept
