"""Derivers over every log: what they may hold, how they end, and that nobody else waits for them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from emp_pipe.component import Derived
from emp_pipe.delivery.derive import DeriveLoop
from emp_pipe.delivery.derived import merged
from emp_pipe.errors import EmpPipeError
from emp_pipe.log.protocol import Delivery, GroupSpec, Topic
from tests.contract.conftest import DEADLINE_S, OpenLog, group
from tests.contract.deriving import GROUPS, append, fill, passing, running
from tests.support.blocks import delivered, numbers_in
from tests.support.context import make_context
from tests.support.deriver import Passing, PassingConfig


async def test_what_is_held_is_bounded_reading_waits_and_a_tick_comes_early(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(200), padding_bytes=1000)
    most = 0
    subject = passing(opened, tick_s=3600.0, max_held_bytes=20_000)

    def look(call: str) -> None:
        nonlocal most
        most = max(most, subject.loop._held_bytes)

    subject.log.before = look
    async with running(subject):
        assert await subject.until_out(190) == list(range(len(subject.out)))
        assert subject.metric("deriver_tick_seconds_count") > 8
    assert most < 22_000, "more was held than allowed, and one block"


class Clinging(Passing):
    """Ends nothing before the last tick."""

    def tick(self, now_unix_nano: int, *, final: bool) -> Derived | None:
        if not final:
            self.calls.append("tick")
            return None
        return super().tick(now_unix_nano, final=final)


async def test_a_deriver_that_lets_nothing_go_is_not_asked_again_and_again(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(30), padding_bytes=1000)
    async with running(passing(opened, deriver=Clinging, tick_s=3600.0, max_held_bytes=5_000)) as subject:
        await opened.until(lambda: subject.deriver.calls.count("tick") == 1)
        await asyncio.sleep(0.1)
        assert subject.deriver.calls.count("tick") == 1
        assert len(subject.loop._held) == 5
        assert await subject.drain(), "the last ticks did not end everything"
    assert await subject.until_out(30) == list(range(30))


async def test_a_drain_takes_what_is_there_and_ticks_for_the_last_time(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    subject = passing(opened, tick_s=3600.0)
    async with running(subject):
        await append(opened, range(10))
        assert await subject.drain()
        assert subject.deriver.calls[-1] == "final tick"
    assert await subject.until_out(10) == list(range(10))


async def test_a_drain_ends_although_more_and_more_comes(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    subject = passing(opened, tick_s=3600.0)
    read, written = subject.log.read, 0

    async def write_and_read(group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        nonlocal written
        await append(opened, [written])
        written += 1
        found: list[Delivery] = await read(group, max_bytes, owner)
        return found

    subject.log.read = write_and_read
    async with running(subject):
        await opened.until(lambda: written)
        await subject.loop.drain(subject.context.clock.monotonic_s() + 5)
        assert subject.loop._ended.is_set(), "the drain went on for as long as there was something to read"
    async with running(passing(opened)) as again:
        assert await again.until_out(written) == list(range(written))


async def test_what_a_deriver_cannot_end_at_a_drain_stays_for_the_next_start(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    subject = passing(opened, tick_s=3600.0, keep=4)
    async with running(subject):
        await append(opened, range(10))
        assert not await subject.drain()
    assert await subject.until_out(6) == list(range(6))
    async with running(passing(opened)) as again:
        assert await again.until_out(4) == [6, 7, 8, 9]


async def test_a_stop_gives_back_what_is_held(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(5))
    subject = passing(opened, keep=10)
    async with running(subject):
        await opened.until(lambda: len(subject.loop._held) == 5)
    assert subject.loop.status().in_flight == 0
    assert delivered(await opened.read("passing")) == list(range(5))


@pytest.mark.log_settings(max_bytes=400_000)
async def test_a_full_log_drains_through_a_deriver(opened: OpenLog) -> None:
    log = await opened.open(*GROUPS)
    written = await fill(opened)
    async with running(passing(opened, keep=2)) as subject:
        await opened.until(lambda: len(subject.loop._held) <= 2 and subject.loop.status().held_records <= 2)
        assert not log.admitting, "what was derived takes the room of what it was derived from: receivers still wait"
        assert await subject.until_out(written - 2) == list(range(written - 2))
        await opened.until(lambda: log.admitting)


class Adding(Passing):
    """Puts its rows out at the first tick and lets go of what it read at the second."""

    def tick(self, now_unix_nano: int, *, final: bool) -> Derived | None:
        self.calls.append("tick")
        held = [delivery for delivery, _ in self._held]
        if not held:
            return None
        if "added" not in self.calls:
            self.calls.append("added")
            outputs = [delivery.block.with_topic("traces") for delivery in held]
            return Derived(outputs=outputs, state_puts={"a": b"1", "b": b"1"}, state_ttl_s=60.0)
        self._held.clear()
        return Derived(acks=held, state_deletes=["a"], state_puts={"c": b"1"}, state_ttl_s=90.0)


@pytest.mark.log_settings(max_bytes=400_000)
async def test_a_commit_that_only_adds_waits_in_a_full_log_for_one_that_also_ends(opened: OpenLog) -> None:
    log = await opened.open(*GROUPS)
    written = await fill(opened)
    async with running(passing(opened, deriver=Adding, tick_s=0.05)) as subject:
        assert await subject.until_out(written) == list(range(written))
    assert subject.metric("deriver_failures_total", kind="log_full") >= 1
    assert await log.state_items("passing") == {"b": b"1", "c": b"1"}


def test_two_commits_in_one_do_what_they_did_in_turn() -> None:
    first = Derived(state_puts={"a": b"1", "b": b"1"}, state_ttl_s=60.0, skipped_records={1: 1}, state_deletes=["c"])
    both = merged(first, Derived(state_puts={"b": b"2", "c": b"2"}, state_ttl_s=30.0, skipped_records={2: 1}, state_deletes=["a"]))
    assert both.state_puts == {"b": b"2", "c": b"2"}
    assert both.state_ttl_s == 60.0
    assert list(both.state_deletes) == ["c", "a"]
    assert both.skipped_records == {1: 1, 2: 1}
    assert merged(first, Derived(state_puts={"d": b""})).state_ttl_s is None, "what was to be kept for good would be forgotten"


class Thinking(Passing):
    """Takes as long as it is made to."""

    go_on = threading.Event()
    thinks = threading.Event()

    def take(self, delivery: Delivery, now_unix_nano: int) -> None:
        self.thinks.set()
        assert self.go_on.wait(DEADLINE_S)
        super().take(delivery, now_unix_nano)


async def test_a_slow_deriver_delays_nobody_else(opened: OpenLog) -> None:
    log = await opened.open(*GROUPS, group("other", Topic.TRACES_IN, Topic.LOGS))
    Thinking.go_on.clear()
    Thinking.thinks.clear()
    async with running(passing(opened, deriver=Thinking)) as subject:
        try:
            await append(opened, [1])
            await opened.until(Thinking.thinks.is_set)
            await append(opened, [2])
            await opened.append(3)
            others = await opened.read("other")
            assert delivered(others) == [1, 2, 3]
            await log.commit("other", acks=others)
            assert subject.out == []
        finally:
            Thinking.go_on.set()
        assert await subject.until_out(2) == [1, 2]


async def test_a_stop_does_not_wait_for_a_deriver_that_hangs_beyond_its_deadline(opened: OpenLog) -> None:
    log = await opened.open(*GROUPS)
    Thinking.go_on.clear()
    Thinking.thinks.clear()
    subject = passing(opened, deriver=Thinking)
    async with asyncio.TaskGroup() as tasks:
        running_loop = tasks.create_task(subject.loop.run())
        try:
            await append(opened, [1, 2])
            await opened.until(Thinking.thinks.is_set)
            await subject.loop.stop(subject.context.clock.monotonic_s() + 0.1)
            assert running_loop.done()
            assert delivered(await opened.read("passing")) == [1, 2], "what it had taken was not given back"
        finally:
            Thinking.go_on.set()
    assert log.usage().groups[1].held_blocks == 0


async def test_what_is_derived_for_a_topic_that_nobody_reads_is_counted_and_not_kept(opened: OpenLog) -> None:
    log = await opened.open(group("passing", Topic.TRACES_IN))
    await append(opened, range(3))
    async with running(passing(opened)) as subject:
        await opened.until(lambda: not subject.loop.status().held_records)
        assert subject.metric("deriver_unread_records_total", topic="traces") == 3
        assert await log.state_get("passing", "rows") == b"3"
    assert log.usage().held_bytes == 0


class Straying(Passing):
    """Writes where it said it would not."""

    @property
    def writes(self) -> frozenset[Topic]:
        return frozenset({Topic.METRICS})


async def test_a_deriver_that_writes_another_topic_than_it_said_is_told_so(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, [1])
    with pytest.raises(EmpPipeError, match="a block of the topic traces, which it does not write"):
        await asyncio.wait_for(passing(opened, deriver=Straying, on_error="stop").loop.run(), DEADLINE_S)


async def test_status_and_metrics_say_what_is_held(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(3), padding_bytes=100)
    subject = passing(opened, keep=2)
    async with running(subject):
        await subject.until_out(1)
        await opened.until(lambda: subject.metric("deriver_held_blocks") == 2)
        status = subject.loop.status()
        assert (status.component, status.group, status.state, status.in_flight, status.held_records) == (
            "passing",
            "passing",
            "deriving",
            2,
            2,
        )
        assert status.seconds_since_success is not None
        assert subject.metric("deriver_held_bytes") > 200
        assert subject.metric("deriver_commits_total") == 1
        assert subject.metric("deriver_output_records_total", topic="traces") == 1


class Unclosable(Passing):
    def close(self) -> None:
        super().close()
        raise RuntimeError("cannot let go")


@pytest.mark.parametrize("deriver", [Passing, Unclosable])
async def test_a_deriver_is_closed_once_after_its_last_call_and_one_that_cannot_be_ends_all_the_same(
    opened: OpenLog, deriver: type[Passing], caplog: pytest.LogCaptureFixture
) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(3))
    async with running(passing(opened, deriver=deriver)) as subject:
        assert await subject.until_out(3) == [0, 1, 2]
        assert subject.deriver.closes == 0
    await opened.until(lambda: subject.deriver.closes == 1)
    await opened.until(lambda: any("cannot let go" in line for line in caplog.messages) is (deriver is Unclosable))


async def test_outputs_are_shown_to_who_watches_once_they_are_in_the_log(opened: OpenLog) -> None:
    await opened.open(*GROUPS)
    await append(opened, range(3))
    subject = passing(opened)
    seen: list[int] = []
    subject.loop._watch = lambda output: seen.extend(numbers_in(output))
    async with running(subject):
        await subject.until_out(3)
        await opened.until(lambda: seen == [0, 1, 2])


async def test_derivers_in_a_row_hand_on_everything(opened: OpenLog) -> None:
    specs: list[GroupSpec] = [group("passing", Topic.TRACES_IN), group("second", Topic.METRICS_IN), group("out", Topic.TRACES)]
    await opened.open(*specs)
    first = passing(opened, writes=Topic.METRICS_IN)
    context = make_context()
    second = DeriveLoop(Passing("second", PassingConfig(reads=Topic.METRICS_IN, writes=Topic.TRACES), context), opened.log, context)
    async with running(first), asyncio.TaskGroup() as tasks:
        tasks.create_task(second.run())
        await append(opened, range(20))
        assert sorted(await first.until_out(20)) == list(range(20))
        await second.stop(context.clock.monotonic_s() + DEADLINE_S)
