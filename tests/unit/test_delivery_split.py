"""What is merged, what is split, and what becomes a dead letter, on virtual time."""

from __future__ import annotations

from random import Random

import pytest

from emp_pipe.component import Parcel, Sent
from emp_pipe.errors import DeliveryError, ErrorKind, Retry
from emp_pipe.log.protocol import DeadReason
from tests.support.delivering import ScriptedExporter, bodies_of, delivering
from tests.support.fake_clock import VirtualClock, run_virtual
from tests.support.telemetry import log_batch, log_block


def failing(kind: ErrorKind, **more: object) -> DeliveryError:
    return DeliveryError(kind, place="scripted", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("poisoned", [[0], [99], [37], [10, 11, 90]])
def test_a_poisoned_row_is_dead_lettered_and_its_neighbours_are_delivered(poisoned: list[int]) -> None:
    bad = {f"row {index}" for index in poisoned}

    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if bad & set(bodies_of(parcel.block)):
                raise failing(ErrorKind.REFUSED, detail="HTTP 400", retry=Retry.SMALLER)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {index}" for index in range(100)])])
            await subject.until_done()
            books, letters = await subject.books(), await subject.dead()
        assert sorted(exporter.bodies) == sorted({f"row {index}" for index in range(100)} - bad)
        assert (books.acked, books.dead) == (100 - len(bad), len(bad))
        assert [letter.reason for letter in letters] == [DeadReason.REFUSED] * len(bad)
        assert all(letter.header and letter.payload and letter.records == 1 and "HTTP 400" in letter.detail for letter in letters)
        assert len(exporter.parcels) <= 1 + 2 * 7 * len(bad)

    run_virtual(main)


def test_what_is_refused_for_good_becomes_one_dead_letter() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            raise failing(ErrorKind.EXPIRED)

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(5)])
            await subject.until_done()
            assert [(letter.reason, letter.records) for letter in await subject.dead()] == [(DeadReason.EXPIRED, 5)]
            assert subject.metric("exporter_dead_records_total", signal="logs", reason="expired") == 5
        assert len(exporter.parcels) == 1

    run_virtual(main)


def test_a_server_error_is_held_against_the_data_only_while_other_data_passes() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            down = 100 < clock.monotonic_s() < 700
            if down or "poison" in bodies_of(parcel.block):
                raise failing(ErrorKind.SERVER_ERROR, maybe_poisoned=True)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await clock.sleep(101)
            await subject.append([log_block([f"row {index}"]) for index in range(40)])
            await clock.sleep(590)
            assert not await subject.dead(), "an outage makes no dead letters"
            await subject.append([log_block(["good 1", "poison", "good 2"])])
            for index in range(300):
                await subject.append([log_block([f"later {index}"])])
                await clock.sleep(1.0)
            await subject.until_done(600)
            letters, books = await subject.dead(), await subject.books()
        assert [letter.records for letter in letters] == [1]
        assert {"good 1", "good 2"} <= set(exporter.bodies)
        assert (books.acked, books.dead) == (342, 1)

    run_virtual(main)


def test_a_poisoned_row_in_a_merged_request_takes_no_neighbour_along() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if "row 7.1" in bodies_of(parcel.block):
                raise failing(ErrorKind.REFUSED, retry=Retry.SMALLER)
            return Sent()

        exporter = ScriptedExporter(behave, merges=True, codec="gzip")
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"row {block}.{row}" for row in range(3)]) for block in range(12)])
            await subject.until_done()
            books, letters = await subject.books(), await subject.dead()
        assert (books.acked, books.dead) == (35, 1)
        assert len(set(exporter.bodies)) == len(exporter.bodies) == 35
        assert [letter.records for letter in letters] == [1]

    run_virtual(main)


def test_a_request_that_is_too_large_is_split_and_later_ones_are_merged_less() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if parcel.block.uncompressed_bytes > 400_000:
                raise failing(ErrorKind.TOO_LARGE)
            return Sent()

        exporter = ScriptedExporter(behave, merges=True, codec="none")
        async with delivering(exporter, clock=clock, random=random) as subject:
            for _ in range(2):
                await subject.append([log_block([f"{index} " + "x" * 900 for index in range(100)], codec="none") for _ in range(30)])
                await subject.until_done()
                refused = len(exporter.parcels) - len(exporter.delivered)
            assert (await subject.books()).acked == 6000
            assert refused <= 6, "the limit was not learnt"

    run_virtual(main)


def test_a_block_that_cannot_be_read_becomes_a_dead_letter_with_its_bytes() -> None:
    from emp_pipe._core import Block

    async def main(clock: VirtualClock, random: Random) -> None:
        good = log_batch(3).to_block("gzip", topic="logs", block_id="torn")
        torn = Block(good.header, bytes(memoryview(good))[:-12])
        exporter = ScriptedExporter(merges=True, codec="none")
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(["before"]), torn, log_block(["after"])])
            await subject.until_done()
            letters, books = await subject.dead(), await subject.books()
        assert sorted(exporter.bodies) == ["after", "before"]
        assert [(letter.reason, letter.payload, letter.header) for letter in letters] == [
            (DeadReason.BLOCK_INVALID, bytes(memoryview(torn)), torn.header)
        ]
        assert (books.acked, books.dead) == (2, 3)

    run_virtual(main)


def test_blocks_that_wait_are_merged_and_those_alone_are_not() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(merges=True, codec="gzip")
        async with delivering(exporter, clock=clock, random=random) as subject:
            alone = log_block(["alone"])
            await subject.append([alone])
            await subject.until_done()
            assert exporter.parcels[0].block.block_id == alone.block_id
            await subject.append([log_block([f"row {index}"]) for index in range(30)])
            await subject.until_done()
            assert (await subject.books()).acked == 31
        assert len(exporter.parcels) == 2
        assert exporter.bodies == ["alone", *(f"row {index}" for index in range(30))]

    run_virtual(main)


def test_the_halves_of_a_request_answer_for_one_another_when_nothing_else_is_sent() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        split = False

        async def behave(parcel: Parcel) -> Sent:
            nonlocal split
            bodies = bodies_of(parcel.block)
            split |= len(bodies) == 4
            if "poison" in bodies:
                raise failing(ErrorKind.SERVER_ERROR, maybe_poisoned=True)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(["poison", *(f"row {index}" for index in range(7))])])
            while not split:
                await subject.append([log_block(["other"])])
                await clock.sleep(1.0)
            await subject.until_done(600)
            assert [letter.records for letter in await subject.dead()] == [1]
        assert {f"row {index}" for index in range(7)} <= set(exporter.bodies)

    run_virtual(main)
