"""The delivery loop over OTLP/HTTP against the strict endpoint: what each answer does to the records, end to end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from emp_pipe.exporters.otlp_http import OtlpHttpConfig, OtlpHttpExporter
from emp_pipe.log.protocol import DeadReason
from tests.support.context import make_context
from tests.support.delivering import Delivering, delivering
from tests.support.otlp_endpoint import Answer, OtlpEndpoint
from tests.support.telemetry import log_block

BODIES = [f"row {index}" for index in range(60)]


@pytest.fixture
async def endpoint() -> AsyncIterator[OtlpEndpoint]:
    async with OtlpEndpoint() as endpoint:
        yield endpoint
        assert not endpoint.violations


def exporter_to(endpoint: OtlpEndpoint, **settings: Any) -> OtlpHttpExporter:
    settings = {"endpoint": endpoint.url, "retry_initial_s": 0.02, "retry_max_s": 0.1, **settings}
    return OtlpHttpExporter("otlp_http", OtlpHttpConfig(**settings), make_context())


async def deliver(endpoint: OtlpEndpoint, **settings: Any) -> Delivering:
    """Deliver one block of sixty rows; return when the log holds nothing any more."""
    async with delivering(exporter_to(endpoint, **settings)) as subject:
        await subject.append([log_block(BODIES)])
        await subject.until_done()
        return subject


def bodies(endpoint: OtlpEndpoint) -> Counter[str]:
    return Counter(row.body.string_value for row in endpoint.records("logs"))


async def test_a_poisoned_row_is_isolated_and_its_neighbours_arrive_once(endpoint: OtlpEndpoint) -> None:
    endpoint.refuse_row = lambda row: row.body.string_value == "row 41"
    subject = await deliver(endpoint)
    assert bodies(endpoint) == Counter(set(BODIES) - {"row 41"})
    (letter,) = await subject.dead()
    assert (letter.reason, letter.records, letter.component) == (DeadReason.REFUSED, 1, "otlp_http")
    assert "HTTP 400: a row is refused" in letter.detail


async def test_a_request_over_the_endpoints_limit_is_split_until_it_fits(endpoint: OtlpEndpoint) -> None:
    endpoint.most_bytes = 500
    subject = await deliver(endpoint)
    assert bodies(endpoint) == Counter(BODIES)
    assert not await subject.dead()


async def test_a_row_that_is_too_large_alone_becomes_a_dead_letter_that_says_so(endpoint: OtlpEndpoint) -> None:
    endpoint.most_bytes = 2000
    async with delivering(exporter_to(endpoint)) as subject:
        await subject.append([log_block(["small", "x" * 5000, "small too"])])
        await subject.until_done()
        assert [(letter.reason, letter.records) for letter in await subject.dead()] == [(DeadReason.TOO_LARGE, 1)]
    assert bodies(endpoint) == Counter(["small", "small too"])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_passing_failure_delays_and_loses_nothing(endpoint: OtlpEndpoint, status: int) -> None:
    endpoint.script(*[Answer(status=status)] * 3)
    subject = await deliver(endpoint)
    assert bodies(endpoint) == Counter(BODIES)
    assert endpoint.requests == 4
    assert not await subject.dead()


async def test_retry_after_in_seconds_holds_the_next_request_back(endpoint: OtlpEndpoint) -> None:
    endpoint.script(Answer(status=429, retry_after="1"))
    began_s = time.monotonic()
    await deliver(endpoint)
    assert time.monotonic() - began_s >= 0.99
    assert endpoint.requests == 2


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_only_the_operator_can_mend_stays_buffered_until_it_is_mended(endpoint: OtlpEndpoint, status: int) -> None:
    endpoint.always(Answer(status=status, message="no"))
    async with delivering(exporter_to(endpoint)) as subject:
        await subject.append([log_block(BODIES)])
        await endpoint.wait_until(lambda: endpoint.requests >= 3)
        assert (await subject.books()).held == 60
        assert f"HTTP {status}: no" in subject.loop.status().error
        assert subject.loop.status().state == ("down" if status == 404 else "key_refused")
        endpoint.always(None)
        await subject.until_done()
        assert not await subject.dead()
    assert bodies(endpoint) == Counter(BODIES)


@pytest.mark.parametrize("drop", ["before", "mid"])
async def test_a_connection_that_breaks_in_the_answer_sends_again(endpoint: OtlpEndpoint, drop: str) -> None:
    endpoint.script(Answer(drop=drop))
    await deliver(endpoint)
    assert set(bodies(endpoint)) == set(BODIES)
    assert endpoint.requests == 2


async def test_a_partial_success_is_acked_counted_and_not_repeated(endpoint: OtlpEndpoint) -> None:
    endpoint.script(Answer(rejected=7, warning="seven are bad"))
    subject = await deliver(endpoint)
    assert endpoint.requests == 1
    assert (await subject.books()).acked == 60
    assert subject.metric("exporter_rejected_records_total", signal="logs") == 7
    assert subject.metric("exporter_sent_records_total", signal="logs") == 53


async def test_an_endpoint_that_does_not_answer_runs_into_the_timeout(endpoint: OtlpEndpoint) -> None:
    endpoint.script(Answer(delay_s=5.0))
    subject = await deliver(endpoint, timeout_s=0.2)
    assert subject.metric("exporter_retries_attempts_total", kind="timed_out") >= 1
    assert set(bodies(endpoint)) == set(BODIES)


async def test_a_poisoned_row_answered_500_is_isolated_once_other_data_passes(endpoint: OtlpEndpoint) -> None:
    endpoint.refuse_row, endpoint.refuse_status = (lambda row: row.body.string_value == "row 41"), 500
    async with delivering(exporter_to(endpoint)) as subject:
        await subject.append([log_block(BODIES)])
        later = 0
        async with asyncio.timeout(20):
            while (await subject.books()).held:
                await subject.append([log_block([f"later {later}"])])
                later += 1
                await asyncio.sleep(0.01)
        assert [letter.records for letter in await subject.dead()] == [1]
    assert bodies(endpoint) == Counter([*set(BODIES) - {"row 41"}, *(f"later {index}" for index in range(later))])


async def test_many_small_blocks_go_in_few_requests(endpoint: OtlpEndpoint) -> None:
    async with delivering(exporter_to(endpoint)) as subject:
        await subject.append([log_block([f"{index}"]) for index in range(200)])
        await subject.until_done()
    assert sum(bodies(endpoint).values()) == 200
    assert endpoint.requests < 20
