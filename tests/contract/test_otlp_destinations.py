"""What both OTLP exporters promise over the delivery loop, for each signal: what every answer does to the records, end to end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import pytest

from emp_pipe.log.protocol import DeadReason
from tests.support.delivering import Delivering, delivering
from tests.support.otlp_destinations import SIGNALS, OtlpDestination, Signal, block_of, destination_of
from tests.support.telemetry import log_block

NAMES = [f"row {index}" for index in range(60)]
BOTH = ["http", "grpc"]
RETRYABLE = [
    *(("http", status) for status in ("408", "425", "429", "500", "502", "503", "504")),
    *(("grpc", code) for code in ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")),
    *(("grpc", code) for code in ("INTERNAL", "UNKNOWN")),
]
ASKS_TO_WAIT = [("http", "429"), ("http", "503"), ("grpc", "UNAVAILABLE"), ("grpc", "RESOURCE_EXHAUSTED")]
REFUSING = [
    *(("http", status) for status in ("400", "409", "422")),
    *(("grpc", code) for code in ("INVALID_ARGUMENT", "ALREADY_EXISTS", "FAILED_PRECONDITION")),
]
MENDED_BY_THE_OPERATOR = [
    *(("http", status, "key_refused") for status in ("401", "403", "407")),
    *(("http", status, "down") for status in ("402", "404", "405", "415", "501")),
    *(("grpc", code, "key_refused") for code in ("UNAUTHENTICATED", "PERMISSION_DENIED")),
    *(("grpc", code, "down") for code in ("UNIMPLEMENTED", "NOT_FOUND", "RESOURCE_EXHAUSTED")),
]


@pytest.fixture
async def destination(request: pytest.FixtureRequest) -> AsyncIterator[OtlpDestination]:
    async with destination_of(request.param) as made:
        yield made


@pytest.fixture(params=SIGNALS)
def signal(request: pytest.FixtureRequest) -> Signal:
    signal: Signal = request.param
    return signal


both = pytest.mark.parametrize("destination", BOTH, indirect=True)


async def deliver(destination: OtlpDestination, signal: Signal, **settings: Any) -> Delivering:
    """Deliver one block of sixty rows; return when the log holds nothing any more."""
    async with delivering(destination.exporter(**settings)) as subject:
        await subject.append([block_of(signal, NAMES)])
        await subject.until_done()
        return subject


@pytest.mark.parametrize(("destination", "code"), RETRYABLE, indirect=["destination"])
async def test_a_passing_failure_delays_and_loses_nothing(destination: OtlpDestination, signal: Signal, code: str) -> None:
    destination.endpoint.script(*[destination.answer(code)] * 3)
    subject = await deliver(destination, signal)
    assert destination.arrived(signal) == Counter(NAMES)
    assert destination.endpoint.requests == 4
    assert not await subject.dead()


@pytest.mark.parametrize(("destination", "code"), ASKS_TO_WAIT, indirect=["destination"])
async def test_the_wait_that_a_destination_asks_for_holds_the_next_request_back(destination: OtlpDestination, code: str) -> None:
    destination.endpoint.script(destination.answer(code, retry_after_s=1.0))
    began_s = time.monotonic()
    await deliver(destination, "logs")
    assert time.monotonic() - began_s >= 0.99
    assert destination.endpoint.requests == 2


@pytest.mark.parametrize("destination", ["http"], indirect=True)
@pytest.mark.parametrize("status", ["429", "503"])
async def test_a_retry_after_with_a_date_holds_the_next_request_back(destination: OtlpDestination, status: str) -> None:
    from tests.support.otlp_endpoint import Answer

    at_s = int(time.time()) + 2  # a date has no fractions: one to two seconds from now
    destination.endpoint.script(Answer(int(status), retry_after=formatdate(at_s, usegmt=True)))
    await deliver(destination, "traces")
    assert time.time() >= at_s
    assert destination.endpoint.requests == 2


@pytest.mark.parametrize(("destination", "code"), REFUSING, indirect=["destination"])
async def test_a_poisoned_row_is_isolated_and_its_neighbours_arrive_once(destination: OtlpDestination, signal: Signal, code: str) -> None:
    destination.refuse(signal, lambda name: name == "row 41", code)
    subject = await deliver(destination, signal)
    assert destination.arrived(signal) == Counter(set(NAMES) - {"row 41"})
    (letter,) = await subject.dead()
    assert (letter.reason, letter.records) == (DeadReason.REFUSED, 1)
    assert f"{code}: a row is refused" in letter.detail
    books = await subject.books()
    assert (books.appended, books.acked, books.dead) == (60, 59, 1)


@both
async def test_several_poisoned_rows_of_a_merged_request_take_no_neighbour_along(destination: OtlpDestination, signal: Signal) -> None:
    poisoned = {"3.1", "3.2", "17.0", "29.4"}
    destination.refuse(signal, lambda name: name in poisoned)
    async with delivering(destination.exporter()) as subject:
        await subject.append([block_of(signal, [f"{index}.{row}" for row in range(5)]) for index in range(30)])
        await subject.until_done()
        letters = await subject.dead()
    assert destination.arrived(signal) == Counter({f"{index}.{row}" for index in range(30) for row in range(5)} - poisoned)
    assert sum(letter.records for letter in letters) == len(poisoned)


@both
async def test_a_request_over_the_endpoints_limit_is_split_until_it_fits(signal: Signal, destination: OtlpDestination) -> None:
    protocol = destination.protocol
    async with destination_of(protocol, most_bytes=500) as small:
        subject = await deliver(small, signal)
        assert small.arrived(signal) == Counter(NAMES)
        assert not await subject.dead()


@both
async def test_a_row_that_is_too_large_alone_becomes_a_dead_letter_that_says_so(signal: Signal, destination: OtlpDestination) -> None:
    protocol = destination.protocol
    async with destination_of(protocol, most_bytes=2000) as small:
        async with delivering(small.exporter()) as subject:
            await subject.append([block_of(signal, ["small", "x" * 5000, "small too"])])
            await subject.until_done()
            assert [(letter.reason, letter.records) for letter in await subject.dead()] == [(DeadReason.TOO_LARGE, 1)]
        assert small.arrived(signal) == Counter(["small", "small too"])


@pytest.mark.parametrize(("destination", "code", "state"), MENDED_BY_THE_OPERATOR, indirect=["destination"])
async def test_what_only_the_operator_can_mend_stays_buffered_until_it_is_mended(
    destination: OtlpDestination, code: str, state: str
) -> None:
    destination.endpoint.always(destination.answer(code, "no"))
    async with delivering(destination.exporter()) as subject:
        await subject.append([block_of("traces", NAMES)])
        await destination.endpoint.wait_until(lambda: destination.endpoint.requests >= 3)
        assert (await subject.books()).held == 60
        assert f"{code}: no" in subject.loop.status().error
        assert subject.loop.status().state == state
        destination.endpoint.always(None)
        await subject.until_done()
        assert not await subject.dead()
    assert destination.arrived("traces") == Counter(NAMES)


@both
async def test_a_partial_success_is_acked_counted_and_not_repeated(destination: OtlpDestination, signal: Signal) -> None:
    destination.endpoint.script(destination.answer("OK", rejected=7, warning="seven are bad"))
    subject = await deliver(destination, signal)
    assert destination.endpoint.requests == 1
    assert (await subject.books()).acked == 60
    assert subject.metric("exporter_rejected_records_total", signal=signal) == 7
    assert subject.metric("exporter_sent_records_total", signal=signal) == 53


@both
async def test_an_endpoint_that_does_not_answer_runs_into_the_timeout(destination: OtlpDestination, signal: Signal) -> None:
    destination.endpoint.script(destination.answer("OK", delay_s=5.0))
    subject = await deliver(destination, signal, timeout_s=0.3)
    assert subject.metric("exporter_retries_attempts_total", kind="timed_out") >= 1
    assert set(destination.arrived(signal)) == set(NAMES)


@pytest.mark.parametrize("destination", ["http"], indirect=True)
@pytest.mark.parametrize("drop", ["before", "mid"])
async def test_a_connection_that_breaks_in_the_answer_sends_again(destination: OtlpDestination, drop: str) -> None:
    destination.endpoint.script(destination.answer("200", drop=drop))
    await deliver(destination, "logs")
    assert set(destination.arrived("logs")) == set(NAMES)
    assert destination.endpoint.requests == 2


@pytest.mark.parametrize(("destination", "code"), [("http", "500"), ("grpc", "INTERNAL"), ("grpc", "UNKNOWN")], indirect=["destination"])
async def test_a_poisoned_row_that_breaks_the_server_is_isolated_once_other_data_passes(
    destination: OtlpDestination, signal: Signal, code: str
) -> None:
    destination.refuse(signal, lambda name: name == "row 41", code)
    async with delivering(destination.exporter()) as subject:
        await subject.append([block_of(signal, NAMES)])
        later = 0
        async with asyncio.timeout(20):
            while (await subject.books()).held:
                await subject.append([block_of(signal, [f"later {later}"])])
                later += 1
                await asyncio.sleep(0.01)
        assert [letter.records for letter in await subject.dead()] == [1]
    assert destination.arrived(signal) == Counter([*set(NAMES) - {"row 41"}, *(f"later {index}" for index in range(later))])


@both
async def test_many_small_blocks_go_in_few_requests(destination: OtlpDestination) -> None:
    async with delivering(destination.exporter()) as subject:
        await subject.append([log_block([f"{index}"]) for index in range(200)])
        await subject.until_done()
    assert sum(destination.arrived("logs").values()) == 200
    assert destination.endpoint.requests < 20


@both
async def test_no_request_holds_more_than_one_signal_or_more_than_its_most_bytes(destination: OtlpDestination) -> None:
    async with delivering(destination.exporter(max_request_bytes=3000)) as subject:
        for number in range(40):
            await subject.append([block_of(signal, [f"{number}.{row}" for row in range(10)]) for signal in SIGNALS])
        await subject.until_done()
    for signal in SIGNALS:
        assert destination.arrived(signal) == Counter(f"{number}.{row}" for number in range(40) for row in range(10))
    assert max(request.inflated_bytes for request in destination.endpoint.received) <= 3000
