"""What was done upstream is kept on a record's way: into blocks that never mix it, out again beside each OTLP request."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest

from emp_pipe._core import merge_blocks
from emp_pipe.component import Arrival, Parcel
from emp_pipe.done import DONE_HEADER, NOTHING_DONE, Done
from emp_pipe.log.protocol import ReceiverBooks, Topic
from emp_pipe.log.writer import LogWriter
from tests.contract.conftest import OpenLog, group
from tests.support.blocks import batch, numbers_in
from tests.support.delivering import delivering
from tests.support.otlp_destinations import SIGNALS, OtlpDestination, Signal, block_of, destination_of

ALL = [Done(*flags) for flags in product([False, True], repeat=3)]
EVERY_TOPIC = tuple(Topic)


def rows_of(signal: Signal, name: str, done: Done) -> Arrival:
    return Arrival("otlp", block_of(signal, [name], codec="none").decode(), done, received=1)


async def written(opened: OpenLog, arrivals: list[Arrival], topics: tuple[Topic, ...] = EVERY_TOPIC, codec: Any = "gzip") -> list[Any]:
    """Return the deliveries of what was submitted in one turn."""
    await opened.open(group("all", *topics))
    writer = LogWriter(opened.log, topics=topics, codec=codec)
    await asyncio.gather(*(writer.submit(arrival) for arrival in arrivals))
    await writer.close(time.monotonic() + 30)
    return await opened.read("all")


@pytest.mark.parametrize("done", ALL)
async def test_rows_are_filed_by_what_was_done_with_them_and_the_block_says_it(opened: OpenLog, done: Done) -> None:
    deliveries = await written(opened, [rows_of(signal, "row", done) for signal in SIGNALS])
    assert {delivery.block.signal: (delivery.topic, Done.of(delivery.block)) for delivery in deliveries} == {
        "logs": ("logs", done),
        "traces": ("traces" if done.decided else "traces.in", done),
        "metrics": ("metrics" if done.aggregated else "metrics.in", done),
    }


async def test_rows_with_different_flags_are_never_in_one_block(opened: OpenLog) -> None:
    numbers = range(40)
    arrivals = [Arrival("otlp", batch([number]), ALL[number % len(ALL)], received=1) for number in numbers]
    deliveries = await written(opened, arrivals)
    assert len(deliveries) == len(ALL), "rows with the same flags were not merged"
    for delivery in deliveries:
        assert {ALL[number % len(ALL)] for number in numbers_in(delivery.block)} == {Done.of(delivery.block)}
    assert sorted(number for delivery in deliveries for number in numbers_in(delivery.block)) == list(numbers)


async def test_large_blocks_which_a_thread_encodes_say_it_too(opened: OpenLog) -> None:
    done = Done(decided=True, red_done=True)
    deliveries = await written(opened, [Arrival("otlp", batch(range(3000), padding_bytes=1000), done, received=3000)])
    assert len(deliveries) > 1
    assert {Done.of(delivery.block) for delivery in deliveries} == {done}


async def test_event_and_error_rows_are_copied_whatever_was_done_with_them(opened: OpenLog) -> None:
    done = Done(decided=True)
    rows = [Arrival("otlp", batch([1], event_type="x"), done, received=1), Arrival("otlp", batch([2], severity=17), done, received=1)]
    deliveries = await written(opened, rows)
    assert {delivery.topic: numbers_in(delivery.block) for delivery in deliveries} == {"logs": [1, 2], "events": [1], "errors": [2]}


async def test_decided_traces_that_nobody_reads_are_dropped_and_counted(opened: OpenLog) -> None:
    rows = [rows_of("traces", "a", Done(decided=True)), rows_of("traces", "b", NOTHING_DONE)]
    (delivery,) = await written(opened, rows, (Topic.TRACES_IN,))
    assert delivery.block.records == 1
    assert await opened.log.receiver_books() == [ReceiverBooks("otlp", received=2, appended=1, dropped=1)]


@pytest.fixture(params=["http", "grpc"])
async def destination(request: pytest.FixtureRequest) -> AsyncIterator[OtlpDestination]:
    async with destination_of(request.param) as made:
        yield made


def said(destination: OtlpDestination) -> list[str | None]:
    """Return what each request said, in their order."""
    return [{name.lower(): value for name, value in one.headers.items()}.get(DONE_HEADER) for one in destination.endpoint.received]


@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_request_says_what_was_done_with_its_rows_and_nothing_where_nothing_was(
    destination: OtlpDestination, signal: Signal
) -> None:
    exporter = destination.exporter(headers={"x-mine": "1"})
    await exporter.open()
    for done in [*ALL, NOTHING_DONE]:
        await exporter.send(Parcel(block_of(signal, ["row"]).with_flags(**done._asdict()), 1, time.monotonic() + 30))
    await exporter.close(time.monotonic() + 30)
    assert said(destination) == [done.words or None for done in [*ALL, NOTHING_DONE]]
    assert {one.headers["x-mine"] for one in destination.endpoint.received} == {"1"}


async def test_a_merged_request_says_only_what_holds_for_all_of_its_rows(destination: OtlpDestination) -> None:
    exporter = destination.exporter()
    await exporter.open()
    for first, second in product(ALL, ALL):
        parts = [block_of("traces", ["row"]).with_flags(**done._asdict()) for done in (first, second)]
        await exporter.send(Parcel(merge_blocks(parts, "gzip", block_id="merged"), 1, time.monotonic() + 30))
    await exporter.close(time.monotonic() + 30)
    both = [Done(*(a and b for a, b in zip(first, second, strict=True))) for first, second in product(ALL, ALL)]
    assert said(destination) == [done.words or None for done in both]


@pytest.mark.parametrize("selects", [False, True])
async def test_blocks_with_different_flags_are_not_merged_on_the_way_out_so_none_is_forgotten(
    destination: OtlpDestination, selects: bool
) -> None:
    """Selected blocks are opened and made anew, others are merged as they lie."""
    settings = {"except": {"attributes": {"name": "none has it"}}} if selects else {}
    async with delivering(destination.exporter(**settings)) as subject:
        blocks = [block_of("traces", [f"{done.words} {number}"]) for number in range(20) for done in ALL]
        await subject.append([block.with_flags(**done._asdict()) for block, done in zip(blocks, ALL * 20, strict=True)])
        await subject.until_done()
    assert destination.endpoint.requests < len(ALL) * 10, "blocks with the same flags were not merged"
    for request, words in zip(destination.endpoint.received, said(destination), strict=True):
        spans = [span for resource in request.message.resource_spans for scope in resource.scope_spans for span in scope.spans]
        assert {span.name.rpartition(" ")[0] for span in spans} == {words or ""}
    assert destination.arrived("traces") == Counter(f"{done.words} {number}" for number in range(20) for done in ALL)


def test_the_header_cannot_be_configured(destination: OtlpDestination) -> None:
    with pytest.raises(ValueError, match="Emp-Pipe-Done is set by the exporter"):
        destination.exporter(headers={"Emp-Pipe-Done": "decided"})
