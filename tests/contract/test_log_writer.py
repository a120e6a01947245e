"""The writer before every log: concatenation, duplicates, books, failure, and what receivers are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from emp_pipe.component import Arrival
from emp_pipe.log.protocol import ReceiverBooks, Topic
from emp_pipe.log.writer import LogWriter
from tests.contract.conftest import OpenLog, group
from tests.support.blocks import batch, delivered

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
        await one.close(opened.clock.monotonic_s() + 30)


def arrival(*numbers: int, **settings: Any) -> Arrival:
    return Arrival("forward", batch=batch(numbers), received=len(numbers), **settings)


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
