"""The writer before every log: concatenation, duplicates, books, failure, and what receivers are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from emp_pipe.component import Arrival
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import ChunkKey, DeadLetter, DeadReason, ReceiverBooks, Topic
from emp_pipe.log.routes import Routes
from emp_pipe.log.writer import LogWriter
from tests.contract.conftest import OpenLog, group
from tests.contract.writing import Gate, arrival, settle
from tests.support.blocks import batch, block, delivered

Writers = Callable[..., LogWriter]


@pytest.fixture
async def writer(opened: OpenLog) -> AsyncIterator[Writers]:
    """Make a writer before the opened log; closed at the end."""
    made: list[LogWriter] = []

    def make(*topics: Topic, **settings: Any) -> LogWriter:
        made.append(LogWriter(opened.log, topics=topics or (Topic.LOGS,), codec=settings.pop("codec", "none"), **settings))
        return made[-1]

    yield make
    for one in made:
        await one.close(time.monotonic() + 30)


async def test_an_arrival_is_told_when_it_is_durable(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a"))
    await writer().submit(arrival(1, 2, 3))
    assert opened.log.usage().groups[0].held_records == 3
    assert delivered(await opened.read("a")) == [1, 2, 3]


async def test_arrivals_of_one_turn_become_one_block_in_order(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a"))
    intake = writer(codec="gzip")
    await asyncio.gather(*(intake.submit(arrival(number)) for number in range(100)))
    deliveries = await opened.read("a")
    assert delivered(deliveries) == list(range(100))
    assert len(deliveries) == 1, "arrivals that wait together are concatenated before compression"
    assert await opened.log.receiver_books() == [ReceiverBooks("forward", received=100, appended=100)]


async def test_what_arrives_while_an_append_runs_goes_with_the_next_as_one_block(opened: OpenLog, writer: Writers) -> None:
    gate = Gate(await opened.open(group("a")))
    intake = writer()
    first = intake.submit(arrival(0))
    await settle()
    later = [intake.submit(arrival(number)) for number in range(1, 50)]
    await settle()
    assert gate.waiting == 1, "small arrivals do not wait for a timer, but for the append before them"
    assert not first.done()
    gate.open()
    await asyncio.gather(first, *later)
    deliveries = await opened.read("a")
    assert [len(delivered([delivery])) for delivery in deliveries] == [1, 49]
    assert delivered(deliveries) == list(range(50))


async def test_a_full_block_is_encoded_while_the_one_before_is_committed(opened: OpenLog, writer: Writers) -> None:
    gate = Gate(await opened.open(group("a")))
    intake = writer()
    futures = [intake.submit(arrival(0))]
    await settle()
    futures += [intake.submit(Arrival("forward", batch([number], padding_bytes=600_000), received=1)) for number in (1, 2)]
    await settle()
    assert gate.waiting == 2
    futures.append(intake.submit(Arrival("forward", batch([3], padding_bytes=600_000), received=1)))
    await settle()
    assert gate.waiting == 2, "at most two appends are under way, the rest is concatenated"
    gate.open()
    await asyncio.gather(*futures)
    assert delivered(await opened.read("a")) == [0, 1, 2, 3]


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
async def test_blocks_hold_at_most_a_mebibyte_but_for_a_larger_record(opened: OpenLog, writer: Writers, codec: str) -> None:
    await opened.open(group("a"))
    intake = writer(codec=codec)
    large = Arrival("forward", batch(range(3000), padding_bytes=1000), received=3000)
    huge = Arrival("forward", batch([3000], padding_bytes=3 << 20), received=1)
    await asyncio.gather(intake.submit(large), intake.submit(huge), intake.submit(arrival(3001)))
    deliveries = await opened.read("a")
    assert delivered(deliveries) == list(range(3002))
    sizes = [delivery.block.uncompressed_bytes for delivery in deliveries]
    assert [size for size in sizes if size > 1 << 20] == [
        delivery.block.uncompressed_bytes for delivery in deliveries if delivered([delivery]) == [3000]
    ]
    assert len(sizes) <= 6


async def test_a_topic_can_have_a_codec_of_its_own_also_after_a_reload(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a", Topic.LOGS, Topic.EVENTS))
    intake = writer(Topic.LOGS, Topic.EVENTS, codec="none", codecs={Topic.EVENTS: "zstd"})
    found = []
    for codecs in (None, {Topic.LOGS: "gzip"}):
        intake.set_topics((Topic.LOGS, Topic.EVENTS), codecs)
        await intake.submit(Arrival("forward", batch=batch([1], event_type="x"), received=1))
        deliveries = await opened.read("a")
        found.append(sorted((delivery.topic, delivery.block.codec) for delivery in deliveries))
        await opened.log.commit("a", acks=deliveries)
    assert found == [[("events", "zstd"), ("logs", "none")], [("events", "none"), ("logs", "gzip")]]


async def test_event_and_error_rows_are_copied_in_the_same_append_where_somebody_reads_them(opened: OpenLog, writer: Writers) -> None:
    gate = Gate(await opened.open(group("a"), group("bus", Topic.EVENTS), group("sentry", Topic.ERRORS)))
    gate.open()
    intake = writer(Topic.LOGS, Topic.EVENTS, Topic.ERRORS)
    submitted = [
        intake.submit(arrival(1)),
        intake.submit(Arrival("forward", batch([2], event_type="job_started"), received=1)),
        intake.submit(Arrival("forward", batch([3], severity=17), received=1)),
    ]
    await asyncio.gather(*submitted)
    assert len(gate.appends) == 1
    assert delivered(await opened.read("a")) == [1, 2, 3]
    assert delivered(await opened.read("bus")) == [2]
    assert delivered(await opened.read("sentry")) == [3]
    assert await opened.log.receiver_books() == [ReceiverBooks("forward", received=3, appended=3)], (
        "copies are not in the receiver's equation"
    )


async def test_rows_of_a_topic_that_nobody_reads_are_dropped_and_counted(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("traces", Topic.TRACES))
    await writer(Topic.TRACES).submit(arrival(1, 2))
    assert await opened.log.receiver_books() == [ReceiverBooks("forward", received=2, dropped=2)]


async def test_blocks_of_another_emp_pipe_are_appended_as_they_are(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a"), group("bus", Topic.EVENTS))
    logs, events = block([1, 2], codec="zstd"), block([2], topic="events")
    await writer(Topic.LOGS, Topic.EVENTS, codec="gzip").submit(Arrival("forward", blocks=[logs, events], received=3))
    (delivery,) = await opened.read("a")
    assert (delivery.block.block_id, delivery.block.codec) == (logs.block_id, "zstd")
    assert delivered(await opened.read("bus")) == [2]
    assert await opened.log.receiver_books() == [ReceiverBooks("forward", received=2, appended=2)], (
        "the copies of the other side are no new rows"
    )


async def test_all_that_an_arrival_brings_goes_into_one_append(opened: OpenLog, writer: Writers) -> None:
    gate = Gate(await opened.open(group("a")))
    gate.open()
    letter = DeadLetter("forward", DeadReason.ENTRY_INVALID, "torn", b"\x92")
    chunk = ChunkKey("peer", b"c")
    await writer().submit(
        Arrival("tail", batch([1]), received=4, invalid=1, refused=1, dropped=1, dead=[letter], chunks=[chunk], checkpoints={"file": b"7"})
    )
    (append,) = gate.appends
    assert append.books == [ReceiverBooks("tail", received=4, appended=1, invalid=1, refused=1, dropped=1)]
    assert (append.dead, append.chunks, append.checkpoints) == ([letter], [chunk], {"file": b"7"})
    assert [kept for _, kept in await opened.log.dead_letters()] == [letter]


async def test_a_receiver_is_told_its_checkpoint_as_the_last_durable_arrival_left_it(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a"))
    intake = writer()
    assert await intake.checkpoint_get("journald/cursor") is None
    await intake.submit(arrival(1, checkpoints={"journald/cursor": b"one", "kmsg/sequence": b"7"}))
    await intake.submit(Arrival("journald", checkpoints={"journald/cursor": b"two"}))
    assert await writer().checkpoint_get("journald/cursor") == b"two"
    assert await writer().checkpoint_get("kmsg/sequence") == b"7"


async def test_a_repeated_chunk_is_acknowledged_counted_and_not_stored_again(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a"))
    intake = writer()
    await intake.submit(arrival(1, 2, chunks=[ChunkKey("peer", b"c1")]))
    await intake.submit(arrival(1, 2, chunks=[ChunkKey("peer", b"c1")]))
    await intake.submit(arrival(3, chunks=[ChunkKey("other peer", b"c1")]))
    assert delivered(await opened.read("a")) == [1, 2, 3]
    assert await opened.log.receiver_books() == [ReceiverBooks("forward", received=5, appended=3, duplicate=2)]


async def test_a_repeat_that_comes_while_the_first_is_pending_shares_its_outcome(opened: OpenLog, writer: Writers) -> None:
    gate = Gate(await opened.open(group("a")))
    intake = writer()
    first = intake.submit(arrival(1, chunks=[ChunkKey("peer", b"c1")]))
    same_turn = intake.submit(arrival(1, chunks=[ChunkKey("peer", b"c1")]))
    await settle()
    later = intake.submit(arrival(1, chunks=[ChunkKey("peer", b"c1")]))
    await settle()
    assert not same_turn.done()
    assert not later.done()
    gate.open()
    await asyncio.gather(first, same_turn, later)
    assert delivered(await opened.read("a")) == [1]
    assert await opened.log.receiver_books() == [ReceiverBooks("forward", received=3, appended=1, duplicate=2)]


async def test_a_repeat_of_a_chunk_whose_append_fails_is_not_acknowledged(opened: OpenLog, writer: Writers) -> None:
    gate = Gate(await opened.open(group("a")))
    intake = writer()
    futures = [intake.submit(arrival(1, chunks=[ChunkKey("peer", b"c1")])) for _ in range(2)]
    gate.error = LogError(ErrorKind.LOG_IO)
    gate.open()
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert results == [gate.error, gate.error]
    gate.error = None
    await intake.submit(arrival(1, chunks=[ChunkKey("peer", b"c1")]))
    assert delivered(await opened.read("a")) == [1], "a chunk whose append failed must not be taken for a repeat"


async def test_when_an_append_fails_none_of_its_arrivals_is_acknowledged(opened: OpenLog, writer: Writers) -> None:
    gate = Gate(await opened.open(group("a")))
    intake = writer()
    futures = [intake.submit(arrival(number)) for number in range(5)]
    gate.error = LogError(ErrorKind.LOG_IO)
    gate.open()
    assert await asyncio.gather(*futures, return_exceptions=True) == [gate.error] * 5
    assert opened.log.usage().held_bytes == 0


@pytest.mark.log_settings(max_bytes=20_000)
async def test_a_full_log_stops_the_intake_and_wakes_it_again(opened: OpenLog, writer: Writers) -> None:
    log = await opened.open(group("a"))
    intake = writer()
    number = 0
    while intake.admitting:
        await intake.submit(arrival(number))
        number += 1
    with pytest.raises(LogError) as error:
        await intake.submit(arrival(99))
    assert error.value.kind is ErrorKind.LOG_FULL
    waiting = asyncio.ensure_future(intake.wait_admitting())
    await settle()
    assert not waiting.done()
    await log.commit("a", acks=await opened.read("a"))
    async with asyncio.timeout(10):
        await waiting
    assert intake.admitting


async def test_too_much_waiting_stops_the_intake(opened: OpenLog, writer: Writers) -> None:
    gate = Gate(await opened.open(group("a")))
    intake = writer(waiting_bytes_limit=10_000)
    futures = [intake.submit(Arrival("forward", batch([number], padding_bytes=4000), received=1)) for number in range(3)]
    assert not intake.admitting
    waiting = asyncio.ensure_future(intake.wait_admitting())
    await settle()
    assert not waiting.done()
    gate.open()
    async with asyncio.timeout(10):
        await waiting
    await asyncio.gather(*futures)


async def test_an_intake_that_waits_for_both_the_writer_and_the_log_wakes_up(opened: OpenLog, writer: Writers) -> None:
    log = await opened.open(group("a", quota_bytes=5000))
    gate = Gate(log)
    intake = writer(waiting_bytes_limit=6000)
    submitted = intake.submit(Arrival("forward", batch([1], padding_bytes=8000), received=1))
    waiting = asyncio.ensure_future(intake.wait_admitting())
    await settle()
    gate.open()
    await submitted
    await settle()
    assert not log.admitting
    assert not waiting.done()
    await log.commit("a", acks=await opened.read("a"))
    async with asyncio.timeout(10):
        await waiting


async def test_rows_that_cannot_be_encoded_are_not_acknowledged(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a"))
    intake = writer()
    intake._encode_block = lambda *arguments, **settings: 1 / 0  # type: ignore[assignment]
    with pytest.raises(LogError, match="cannot be encoded"):
        await intake.submit(arrival(1))


async def test_closing_finishes_what_was_submitted_and_refuses_the_rest(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a"))
    intake = writer()
    futures = [intake.submit(arrival(number)) for number in range(5)]
    await intake.close(time.monotonic() + 30)
    assert [future.exception() for future in futures] == [None] * 5
    late = intake.submit(arrival(9))
    assert isinstance(late.exception(), LogError)
    assert delivered(await opened.read("a")) == [0, 1, 2, 3, 4]


async def test_closing_does_not_wait_beyond_its_deadline(opened: OpenLog, writer: Writers) -> None:
    Gate(await opened.open(group("a")))
    intake = writer()
    future = intake.submit(arrival(1))
    await intake.close(time.monotonic() + 0.05)
    error = future.exception()
    assert isinstance(error, LogError)
    assert error.kind is ErrorKind.LOG_CLOSED


async def test_block_ids_are_unique_and_their_order_is_that_of_writing(opened: OpenLog, writer: Writers) -> None:
    await opened.open(group("a"))
    intake = writer()
    for number in range(20):
        await intake.submit(arrival(number))
    ids = [delivery.block.block_id for delivery in await opened.read("a")]
    assert ids == sorted(set(ids))


class _Blocky:
    """What `Routes.file_block` looks at."""

    def __init__(self, signal: str, topic: str, *, decided: bool = False, aggregated: bool = False) -> None:
        self.signal, self.topic, self.decided, self.aggregated = signal, topic, decided, aggregated

    def with_topic(self, topic: str) -> _Blocky:
        return _Blocky(self.signal, topic, decided=self.decided, aggregated=self.aggregated)


@pytest.mark.parametrize(
    ("read", "block", "filed"),
    [
        ({Topic.TRACES}, _Blocky("traces", "traces"), "traces"),
        ({Topic.TRACES, Topic.TRACES_IN}, _Blocky("traces", "traces"), "traces.in"),
        ({Topic.TRACES, Topic.TRACES_IN}, _Blocky("traces", "traces", decided=True), "traces"),
        ({Topic.TRACES}, _Blocky("traces", "traces.in"), "traces"),
        ({Topic.METRICS, Topic.METRICS_IN}, _Blocky("metrics", "metrics"), "metrics.in"),
        ({Topic.METRICS, Topic.METRICS_IN}, _Blocky("metrics", "metrics", aggregated=True), "metrics"),
        ({Topic.LOGS}, _Blocky("logs", "events"), None),
        ({Topic.LOGS, Topic.EVENTS}, _Blocky("logs", "events"), "events"),
        ({Topic.ERRORS}, _Blocky("traces", "errors"), "errors"),
        ({Topic.LOGS}, _Blocky("logs", "a topic of a later version"), "logs"),
    ],
)
def test_a_block_of_another_emp_pipe_is_filed_by_signal_and_flags(read: set[Topic], block: Any, filed: str | None) -> None:
    result = Routes(read).file_block(block)
    assert (result.topic if result is not None else None) == filed
