"""The aggregator of the core: bytes that are no metrics, senders that mean harm, and what it takes in memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from pathlib import Path

import pytest

from emp_pipe._core import Aggregator, Block, CoreError
from tests.support.blocks import block as logs_block
from tests.support.metrics import (
    CUMULATIVE,
    NO_RECORDED_VALUE,
    aggregated,
    block_of,
    exponential,
    exponential_point,
    flush,
    gauge,
    histogram,
    histogram_point,
    point,
    points_in,
    request,
    sum_of,
    value_of,
    with_exemplars,
)


def test_a_block_that_cannot_be_read_changes_nothing() -> None:
    aggregator = Aggregator()
    good = block_of(request(sum_of("m", point(1))))
    with pytest.raises(CoreError) as caught:
        aggregator.take(Block(good.header, b"\xff" * good.payload_bytes))
    assert caught.value.kind == "block_invalid"
    assert flush(aggregator) == []


def test_a_broken_point_is_given_back_with_its_metric_and_its_neighbours_are_taken() -> None:
    good = block_of(request(sum_of("metric.name", point(1, a="x"), point(2, a="yy"), point(4, a="x"))))
    aggregator = Aggregator()
    taken = aggregator.take(Block(good.header, good.payload("none").replace(b"\x0a\x02yy", b"\x0a\x7fyy")))
    (broken,) = taken.unreadable
    assert b"metric.name" in broken.data
    assert (broken.kind, broken.records) == ("body_invalid", 1)
    assert [value_of(one) for one in points_in(flush(aggregator))] == [5]


def test_a_block_of_another_signal_is_refused() -> None:
    with pytest.raises(CoreError, match="of logs, not of metrics"):
        Aggregator().take(logs_block([1]))


def test_a_metric_whose_points_are_all_broken_is_not_copied_for_each_of_them() -> None:
    points = [point(1, a="yy") for _ in range(5000)]
    good = block_of(request(sum_of("m", *points, description="d" * 200_000)))
    taken = Aggregator().take(Block(good.header, good.payload("none").replace(b"\x0a\x02yy", b"\x0a\x7fyy")))
    assert sum(len(broken.data) for broken in taken.unreadable) < 2_000_000
    assert sum(broken.records for broken in taken.unreadable) == 5000


def test_attributes_that_are_not_utf_8_are_given_back() -> None:
    good = block_of(request(sum_of("m", point(2, a="yy"))))
    aggregator = Aggregator()
    taken = aggregator.take(Block(good.header, good.payload("none").replace(b"\x0a\x02yy", b"\x0a\x02\xff\xfe")))
    assert len(taken.unreadable) == 1


@pytest.mark.parametrize("seed", range(40))
def test_mutated_blocks_never_end_the_process_and_what_comes_out_can_be_read(seed: int) -> None:
    chance = random.Random(seed)
    good = block_of(
        request(
            gauge("g", with_exemplars(point(1, a="x"), 1)),
            sum_of("s", point(1, a="x"), point(2, b="y"), temporality=chance.choice([0, 1, 2])),
            histogram("h", with_exemplars(histogram_point(0.5, 3.0, a="x"), 1), temporality=chance.choice([1, 2])),
            exponential("e", exponential_point(0.5, 3.0, -1.0, a="x"), exponential_point(0.5, scale=7, zero_threshold=0.1, a="x")),
        )
    )
    aggregator = Aggregator(max_streams=chance.choice([2, 2000]))
    for _ in range(60):
        payload = bytearray(good.payload("none"))
        for _ in range(chance.randint(1, 4)):
            payload[chance.randrange(len(payload))] = chance.randrange(256)
        with contextlib.suppress(CoreError):
            aggregator.take(Block(good.header, bytes(payload)))
    for block in flush(aggregator):
        block.decode()


def test_a_sender_whose_points_never_join_costs_time_and_memory_in_proportion() -> None:
    aggregator = Aggregator()
    for at in range(20):
        resets = [point(1000 - number, start=number + at * 1000, at=number) for number in range(1000)]
        aggregator.take(block_of(request(sum_of("m", *resets, temporality=CUMULATIVE))))
    assert aggregator.size_bytes < 20_000 * 300
    assert len(points_in(flush(aggregator))) == 20_000


def test_senders_that_say_again_and_again_that_there_is_no_value_cost_little() -> None:
    marker = point(None)
    marker.flags = NO_RECORDED_VALUE
    resets = [one for number in range(5000) for one in (point(1, start=number), marker)]
    assert len(points_in(aggregated(sum_of("m", *resets, temporality=CUMULATIVE)))) < 6000


def test_a_restart_of_many_processes_in_one_window_keeps_each_of_their_lives() -> None:
    lives = [point(life + 1, start=life * 10, at=life * 10 + 5) for life in range(20)]
    random.Random(1).shuffle(lives)
    blocks = aggregated(*(sum_of("m", one, temporality=CUMULATIVE) for one in lives))
    assert sorted(value_of(one) or 0 for one in points_in(blocks)) == list(range(1, 21))


def test_a_sender_with_another_order_of_attributes_each_time_makes_no_more_than_one_stream() -> None:
    aggregator = Aggregator()
    orders = list(itertools.permutations("abcdef"))
    for some in (orders[at : at + 100] for at in range(0, len(orders), 100)):
        aggregator.take(block_of(request(sum_of("m", *(point(1, **dict.fromkeys(order, "x" * 20)) for order in some)))))
    assert aggregator.stream_count == 1
    assert aggregator.size_bytes < 10_000
    assert [value_of(one) for one in points_in(flush(aggregator))] == [len(orders)]


def test_memory_is_given_back_after_a_flush() -> None:
    aggregator = Aggregator(max_streams=100_000)
    for number in range(10):
        aggregator.take(block_of(request(sum_of("m", *(point(1, n=f"{number}-{at}" * 5) for at in range(2000))))))
    full = aggregator.size_bytes
    flush(aggregator)
    assert aggregator.size_bytes < full / 1.5
    aggregator.take(block_of(request(sum_of("m", point(1)))))
    flush(aggregator)
    aggregator.shrink()
    assert aggregator.stream_count == 1
    assert aggregator.size_bytes < full / 20


def test_a_hundred_thousand_streams_take_far_less_than_150_megabytes() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = []
    for service in range(50):
        points = [
            point(number, method="GET", route=f"/api/v1/items/{number}", status=200, host="machine-0123456789") for number in range(2000)
        ]
        metrics = request(sum_of("http.server.requests", *points), resource={"service.name": f"service-{service}"})
        blocks.append(block_of(metrics, codec="zstd"))
    before = resident_bytes()
    aggregator = Aggregator(max_streams=2001)
    for _ in range(3):
        for block in blocks:
            assert aggregator.take(block).points == 2000
    held = resident_bytes()
    flushed = aggregator.flush("zstd", topic="metrics", block_prefix="b-")
    assert (aggregator.stream_count, flushed.points, flushed.overflowed) == (100_000, 100_000, {})
    assert held - before < 45_000_000
    assert resident_bytes() - before < 60_000_000
