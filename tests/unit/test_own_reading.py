"""What receivers that read by themselves share: a kill at any moment neither loses nor repeats, and nothing is read ahead of the log."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from emp_pipe.component import Arrival, ComponentConfig
from emp_pipe.own_reading import ReadingReceiver
from tests.support.context import make_context
from tests.support.own_reading import KeptIntake, reading

COUNT = 4


class Numbers(ReadingReceiver):
    """Reads numbers, one at a time; `read_up_to` is the last that it took."""

    read_up_to = 0

    async def read(self) -> None:
        after = int(await self.checkpoint("number") or b"0")
        for number in range(after + 1, COUNT + 1):
            self.read_up_to = number
            batch = self.batch_of([{"message": str(number)}], tag="numbers")
            await self.hand_over(batch, {"number": str(number).encode()})
        await asyncio.Event().wait()


class EndingIntake(KeptIntake):
    """Keeps so many arrivals; of later ones nothing becomes durable, and nobody hears of them."""

    def __init__(self, lasting: int) -> None:
        super().__init__()
        self.lasting = lasting
        self.is_ending = asyncio.Event()

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        if len(self.arrivals) < self.lasting:
            return super().submit(arrival)
        self.is_ending.set()
        return asyncio.get_running_loop().create_future()


def numbers() -> Numbers:
    return Numbers("numbers", ComponentConfig(), make_context())


async def killed_after(receiver: Numbers, intake: EndingIntake) -> None:
    """Run a receiver until the log takes no more, then leave it without a stop."""
    task = asyncio.create_task(receiver.run(intake, asyncio.Event()))
    await asyncio.wait_for(intake.is_ending.wait(), 20.0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("durable", range(COUNT))
async def test_a_kill_after_any_commit_loses_nothing_and_repeats_nothing(durable: int) -> None:
    intake = EndingIntake(durable)
    await killed_after(numbers(), intake)
    intake.lasting = 1000
    async with reading(numbers(), intake):
        await intake.until(lambda: str(COUNT) in intake.messages())
    assert intake.messages() == [str(number + 1) for number in range(COUNT)]


async def test_nothing_is_read_on_before_what_was_read_is_durable() -> None:
    receiver, intake = numbers(), EndingIntake(2)
    await killed_after(receiver, intake)
    assert intake.messages() == ["1", "2"]
    assert receiver.read_up_to == 3


async def test_what_the_log_refuses_is_handed_over_again_with_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emp_pipe.own_reading._AGAIN_S", 0.01)
    intake = KeptIntake()
    intake.refusing = 3
    async with reading(numbers(), intake):
        await intake.until(lambda: len(intake.rows) == COUNT)
    assert intake.messages() == [str(number + 1) for number in range(COUNT)]
    assert list(intake.checkpoints.values()) == [str(COUNT).encode()]
