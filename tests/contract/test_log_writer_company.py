"""The writer before every log: senders that are answered together are waited for, so that they share commits; others wait for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from emp_pipe.component import Arrival
from emp_pipe.log.protocol import Topic
from emp_pipe.log.writer import LogWriter
from tests.contract.conftest import OpenLog, group
from tests.contract.writing import Gate, arrival, settle
from tests.support.blocks import batch, delivered
from tests.support.manual_clock import ManualClock


class Company:
    """Four senders whose first arrivals are appended together, which takes an hour; `intake` waits as long for their next."""

    def __init__(self, gate: Gate, clock: ManualClock, intake: LogWriter) -> None:
        self.gate, self.clock, self.intake = gate, clock, intake

    async def meet(self, append_s: float = 3600.0) -> None:
        futures = [self.intake.submit(arrival(number)) for number in range(4)]
        await settle()
        self.clock.advance(append_s)
        self.gate.open()
        await asyncio.gather(*futures)


@pytest.fixture
async def company(opened: OpenLog, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Company]:
    monkeypatch.setattr("emp_pipe.log.writer.COMPANY_S", 3600.0)
    gate, clock = Gate(await opened.open(group("a"))), ManualClock()
    intake = LogWriter(opened.log, topics=[Topic.LOGS], codec="none", clock=clock)
    yield Company(gate, clock, intake)
    await intake.close(clock.monotonic_s() + 30)


async def test_senders_that_were_answered_together_are_appended_together_again(company: Company, opened: OpenLog) -> None:
    await company.meet()
    first = company.intake.submit(arrival(4))
    await settle()
    assert len(company.gate.appends) == 1, "it has a commit for itself, and the others wait for that"
    await asyncio.gather(first, *(company.intake.submit(arrival(number)) for number in (5, 6, 7)))
    assert [len(delivered([delivery])) for delivery in await opened.read("a")] == [4, 4]


async def test_one_that_comes_later_than_an_append_takes_waits_for_nobody(company: Company) -> None:
    await company.meet()
    company.clock.advance(3601.0)
    await company.intake.submit(arrival(4))


async def test_where_an_append_takes_no_time_nobody_waits_for_company(company: Company) -> None:
    await company.meet(append_s=0.0)
    await company.intake.submit(arrival(4))


async def test_a_full_block_does_not_wait_for_company(company: Company) -> None:
    await company.meet()
    await company.intake.submit(Arrival("forward", batch([4], padding_bytes=1_100_000), received=1))


async def test_company_that_does_not_come_is_waited_for_a_moment_only(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emp_pipe.log.writer.COMPANY_S", 0.01)
    await company.meet()
    await company.intake.submit(arrival(4))
    first = company.intake.submit(arrival(5))
    await settle()
    assert len(company.gate.appends) == 3, "there was one arrival in the append before: nobody else is waited for"
    await first
