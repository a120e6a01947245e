"""Derivers over every log: each row counts once, whatever fails in between. Read next: `test_deriver_flow.py`."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from emp_pipe._core import Block
from emp_pipe.component import Derived
from emp_pipe.errors import EmpPipeError, ErrorKind, LogError
from emp_pipe.log.protocol import Append, Delivery
from tests.contract.conftest import DEADLINE_S, OpenLog
from tests.contract.deriving import GROUPS, Killed, append, passing, running
from tests.support.blocks import block, delivered, numbers_in
from tests.support.deriver import Passing, PassingConfig


async def test_every_row_that_was_read_comes_out_once_and_its_state_with_it(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(10))
    async with running(passing(opened)) as subject:
        assert await subject.until_out(10) == list(range(10))
        await append(opened, range(10, 20))
        assert await subject.until_out(20) == list(range(20))
        assert await opened.log.state_get("passing", "rows") == b"20"
    assert subject.deriver.calls[0] == "restore"
    taken = [call for call in subject.deriver.calls if call.startswith("take")]
    assert taken == sorted(taken, key=lambda call: int(call.split()[1])), "deliveries were not taken in the order of offsets"


@pytest.mark.parametrize("seed", range(4))
async def test_a_kill_at_any_step_neither_loses_nor_doubles_a_row(opened: OpenLog, seed: int) -> None:
    chance = random.Random(seed)
    await opened.open(*GROUPS)
    numbers = list(range(60))
    written = 0
    for _ in range(40):
        more = chance.randint(0, 4)
        await append(opened, numbers[written : written + more])
        written = min(written + more, 60)
        subject = passing(opened, keep=chance.randint(0, 3), tick_s=0.001)
        left = chance.randint(1, 12)

        def step(call: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed

        subject.log.before = subject.log.after = step
        with pytest.raises(Killed):
            await asyncio.wait_for(subject.loop.run(), DEADLINE_S)
        if opened.durable and chance.random() < 0.3:
            await opened.reopen(*GROUPS)
    await append(opened, numbers[written:])
    async with running(passing(opened)) as subject:
        assert await subject.until_out(60) == numbers
        assert await opened.log.state_get("passing", "rows") == b"60"


async def test_a_restart_begins_with_the_state_of_the_last_commit(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(3))
    async with running(passing(opened)) as subject:
        await subject.until_out(3)
    await append(opened, range(3, 5))
    async with running(passing(opened)) as subject:
        await subject.until_out(2)
        assert await opened.log.state_get("passing", "rows") == b"5"


async def test_a_commit_that_the_disk_refused_is_repeated_as_it_was(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    subject = passing(opened)
    failures = 3

    def refuse(call: str) -> None:
        nonlocal failures
        if call == "commit" and failures:
            failures -= 1
            raise LogError(ErrorKind.LOG_IO, detail="no space")

    subject.log.before = refuse
    await append(opened, range(4))
    async with running(subject):
        assert await subject.until_out(4) == list(range(4))
    first = subject.log.committed[:4]
    assert first == [first[0]] * 4, "a repeated commit was not the one that was refused"
    assert subject.deriver.calls.count("restore") == 1, "a refused commit made the deriver begin anew"
    assert subject.metric("deriver_failures_total", kind="log_io") == 3


@pytest.mark.parametrize("call", ["state_items", "read"])
async def test_a_log_that_cannot_be_read_for_a_while_is_asked_again(opened: OpenLog, call: str) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(3))
    subject = passing(opened)
    failures, ask = 2, getattr(subject.log, call)

    async def fail(*arguments: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise LogError(ErrorKind.LOG_IO, detail="cannot read")
        return await ask(*arguments)

    setattr(subject.log, call, fail)
    async with running(subject):
        assert await subject.until_out(3) == [0, 1, 2]
    assert failures == 0
    assert subject.deriver.calls[0] == "restore"


async def test_a_disk_that_refuses_is_shown_in_the_status_until_it_takes_again(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    subject = passing(opened)
    refusing = True

    def refuse(call: str) -> None:
        if call == "commit" and refusing:
            raise LogError(ErrorKind.LOG_IO, detail="no space")

    subject.log.before = refuse
    await append(opened, [1])
    async with running(subject):
        await opened.until(lambda: subject.loop.status().state == "retrying")
        assert "no space" in subject.loop.status().error
        refusing = False
        await subject.until_out(1)
        await opened.until(lambda: subject.loop.status().state == "idle")
        assert subject.loop.status().error == ""


async def test_a_stale_commit_has_no_effect_and_the_deriver_begins_anew(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(4))
    subject = passing(opened)
    committing = asyncio.Event()
    commit = subject.log.commit

    async def commit_after_reset(group: str, **parts: Any) -> None:
        if not committing.is_set():
            committing.set()
            await opened.log.reset_group("passing", "oldest")
        await commit(group, **parts)

    subject.log.commit = commit_after_reset
    async with running(subject):
        assert await subject.until_out(4) == list(range(4))
        assert await opened.log.state_get("passing", "rows") == b"4"
    assert subject.deriver.calls.count("restore") == 2
    assert subject.metric("deriver_failures_total", kind="log_stale") == 1


async def test_a_group_that_is_reset_while_blocks_are_held_counts_none_of_them_twice(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(4))
    subject = passing(opened, keep=10)
    async with running(subject):
        await opened.until(lambda: "take" in " ".join(subject.deriver.calls) and len(subject.loop._held) == 4)
        await opened.log.reset_group("passing", "oldest")
        await opened.until(lambda: subject.deriver.calls.count("restore") == 2 and len(subject.loop._held) == 4)
        subject.deriver.config = PassingConfig()
        assert await subject.drain()
    assert await subject.until_out(4) == list(range(4))


async def test_a_block_that_cannot_be_read_becomes_a_dead_letter_and_the_rest_goes_on(opened: OpenLog) -> None:
    log = await opened.open(*GROUPS)
    good = block([2], topic="traces.in")
    broken = Block(good.header, b"\xff" * 20)
    await log.append(Append([block([1], topic="traces.in"), broken, block([3], topic="traces.in")]))
    async with running(passing(opened)) as subject:
        assert await subject.until_out(2) == [1, 3]
        await opened.until(lambda: not subject.loop.status().held_records)
    ((_, letter),) = await log.dead_letters()
    assert (letter.component, letter.reason, letter.payload, letter.header) == ("passing", "block_invalid", b"\xff" * 20, good.header)
    assert letter.detail
    books = {books.group: books for books in await log.group_books()}["passing"]
    assert (books.appended, books.acked, books.dead) == (3, 2, 1)
    assert subject.metric("deriver_dead_records_total") == 1


class Stumbling(Passing):
    """Raises at every block that holds a 2."""

    def take(self, delivery: Delivery, now_unix_nano: int) -> None:
        if 2 in numbers_in(delivery.block):
            raise RuntimeError("stumbled")
        super().take(delivery, now_unix_nano)


async def test_a_block_on_which_a_deriver_fails_again_and_again_is_set_aside_and_the_rest_goes_on(opened: OpenLog) -> None:
    log = await opened.open(*GROUPS)
    await append(opened, range(5))
    async with running(passing(opened, deriver=Stumbling)) as subject:
        assert await subject.until_out(4) == [0, 1, 3, 4]
        await opened.until(lambda: not subject.loop.status().held_records)
    ((_, letter),) = await log.dead_letters()
    assert "failed on it 3 times" in letter.detail
    assert subject.deriver.calls.count("restore") == 4


async def test_a_deriver_that_fails_and_shall_stop_ends_with_an_error_that_names_it(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(5))
    subject = passing(opened, deriver=Stumbling, on_error="stop")
    with pytest.raises(EmpPipeError, match="passing: RuntimeError: stumbled") as error:
        await asyncio.wait_for(subject.loop.run(), DEADLINE_S)
    assert error.value.kind is ErrorKind.PROCESSOR_FAILED
    assert delivered(await opened.read("passing")) == list(range(5)), "what it had taken is not in the log any more"


class Tired(Passing):
    """Its first two ticks fail."""

    failures = 2

    def tick(self, now_unix_nano: int, *, final: bool) -> Derived | None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("tired")
        return super().tick(now_unix_nano, final=final)


async def test_a_tick_that_fails_loses_and_doubles_nothing(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(5))
    async with running(passing(opened, deriver=Tired)) as subject:
        assert await subject.until_out(5) == list(range(5))
        assert await opened.log.state_get("passing", "rows") == b"5"
