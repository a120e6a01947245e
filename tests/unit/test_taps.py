"""Taps: bounded, counted, and free where nobody watches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from emp_pipe.component import Arrival
from emp_pipe.taps import Taps


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def unix_nano(self) -> int:
        return int(self.now_s * 1e9)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


@dataclass
class Rows:
    """Stands for a batch; refuses to be looked at where nobody watches."""

    count: int
    line: bytes = b"{}\n"
    looked_at: int = 0

    def __len__(self) -> int:
        return self.count

    def slice(self, start: int, end: int) -> Rows:
        return Rows(end - start, self.line)

    def to_json_lines(self) -> bytes:
        self.looked_at += 1
        return self.line * self.count


def offer(taps: Taps, component: str, rows: Any) -> None:
    taps.offer(component, rows)


async def test_rows_of_a_watched_component_are_copied_and_others_are_not_looked_at() -> None:
    taps = Taps(Clock())
    watched, other = Rows(3), Rows(3)
    with taps.watch("forward") as watcher:
        offer(taps, "forward", watched)
        offer(taps, "file", other)
        lines = await asyncio.wait_for(anext(watcher.lines()), 10)
    assert lines == b"{}\n" * 3
    assert other.looked_at == 0


async def test_without_a_watcher_there_is_nothing_to_do() -> None:
    taps = Taps(Clock())
    with taps.watch("forward"):
        assert taps
    assert not taps
    rows = Rows(3)
    offer(taps, "forward", rows)
    assert rows.looked_at == 0


async def test_rows_beyond_the_allowance_are_left_out_and_counted_and_the_allowance_comes_back() -> None:
    clock = Clock()
    taps = Taps(clock)
    with taps.watch("forward", rows_per_s=10) as watcher:
        offer(taps, "forward", Rows(7))
        offer(taps, "forward", Rows(7))
        assert watcher.left_out_rows == 4
        clock.now_s += 0.5
        offer(taps, "forward", Rows(7))
        assert watcher.left_out_rows == 6
        lines = watcher.lines()
        assert [len(await asyncio.wait_for(anext(lines), 10)) // 3 for _ in range(3)] == [7, 3, 5]


async def test_a_watcher_that_does_not_read_holds_a_bounded_number_of_bytes() -> None:
    clock = Clock()
    taps = Taps(clock)
    with taps.watch("forward", rows_per_s=10) as watcher:
        for _ in range(20):
            offer(taps, "forward", Rows(1, line=b"x" * (1 << 20)))
            await asyncio.sleep(0)
            clock.now_s += 1
        assert watcher.left_out_rows >= 15


async def test_what_a_receiver_hands_over_is_offered_under_its_id() -> None:
    taps = Taps(Clock())
    with taps.watch("forward/a") as watcher:
        batch: Any = Rows(1)
        taps.offer_arrival(Arrival("forward/b", batch=batch))
        taps.offer_arrival(Arrival("forward/a", batch=batch))
        await asyncio.wait_for(anext(watcher.lines()), 10)
    assert batch.looked_at == 1
