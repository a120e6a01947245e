"""The aggregator of the core: exemplars, fields that it does not know, the limit of streams, blocks."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from emp_pipe._core import Aggregator
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
    labels_of,
    metrics_in,
    point,
    points_in,
    request,
    requests_in,
    sum_of,
    unknown_field,
    value_of,
    with_exemplars,
)

# exemplars


@pytest.mark.parametrize(
    ("make", "make_point"),
    [
        (sum_of, lambda at: point(1, at=at)),
        (gauge, lambda at: point(1, at=at)),
        (lambda name, one: sum_of(name, one, temporality=CUMULATIVE), lambda at: point(at, at=at)),
        (histogram, lambda at: histogram_point(0.5, at=at)),
        (lambda name, one: histogram(name, one, temporality=CUMULATIVE), lambda at: histogram_point(0.5, at=at)),
        (exponential, lambda at: exponential_point(0.5, at=at)),
    ],
    ids=["delta sum", "gauge", "cumulative sum", "delta histogram", "cumulative histogram", "exponential histogram"],
)
def test_exemplars_of_points_that_became_one_are_kept_up_to_the_limit(make: Any, make_point: Any) -> None:
    blocks = aggregated(make("m", with_exemplars(make_point(1), 1, 2)), make("m", with_exemplars(make_point(2), 3, 4)), max_exemplars=3)
    (found,) = points_in(blocks)
    assert [one.as_double for one in found.exemplars] == [2, 3, 4], "not the latest"
    assert found.exemplars[0].trace_id == bytes([3]) * 16


def test_exemplars_with_a_trace_are_kept_rather_than_later_ones_without() -> None:
    old, new = with_exemplars(point(1), 1), with_exemplars(point(1), 5, 6, 7, traced=False)
    (found,) = points_in(aggregated(sum_of("m", old), sum_of("m", new), max_exemplars=2))
    assert [one.as_double for one in found.exemplars] == [1, 7]


def test_a_point_that_stays_alone_has_no_more_exemplars_than_the_limit_either() -> None:
    (found,) = points_in(aggregated(sum_of("m", with_exemplars(point(1), *range(9)))))
    assert len(found.exemplars) == 5


# what it does not know


def test_unknown_fields_of_metric_data_and_point_survive() -> None:
    for make in (gauge, sum_of, lambda name, one: sum_of(name, one, temporality=CUMULATIVE)):
        for one in [point(1, at=1)]:
            one.MergeFromString(unknown_field(77, b"point"))
            metric = make("m", one)
            kind = metric.WhichOneof("data")
            assert kind
            getattr(metric, kind).MergeFromString(unknown_field(78, b"data"))
            metric.MergeFromString(unknown_field(79, b"metric"))
            payload = b"".join(block.payload("none") for block in aggregated(metric, metric))
            for field in (unknown_field(77, b"point"), unknown_field(78, b"data"), unknown_field(79, b"metric")):
                assert payload.count(field) == 1, f"{field!r} of {kind}"


@pytest.mark.parametrize("make", [histogram, lambda name, one: histogram(name, one, temporality=CUMULATIVE)])
def test_unknown_fields_of_a_histogram_survive_and_the_last_ones_stand(make: Any) -> None:
    old, new = histogram_point(0.5, at=1), histogram_point(0.5, 0.6, at=2)
    old.MergeFromString(unknown_field(77, b"old"))
    new.MergeFromString(unknown_field(77, b"new"))
    payload = b"".join(block.payload("none") for block in aggregated(make("m", new), make("m", old)))
    assert unknown_field(77, b"new") in payload
    assert unknown_field(77, b"old") not in payload


def test_metadata_of_a_metric_survives() -> None:
    metric = gauge("m", point(1))
    metric.metadata.add(key="k").value.string_value = "v"
    (found,) = metrics_in(aggregated(metric))
    assert found.metadata == metric.metadata


def test_a_metric_of_a_kind_that_is_not_known_is_passed_on_as_it_lies() -> None:
    metric = Metric(name="future", unit="s")
    metric.MergeFromString(unknown_field(13, b"\x0a\x02\x08\x01"))
    (found,) = metrics_in(aggregated(metric))
    assert found.SerializeToString() == metric.SerializeToString()


# the limit of streams


def test_deltas_past_the_limit_go_to_the_overflow_stream_and_the_total_stays_right() -> None:
    aggregator = Aggregator(max_streams=5)
    for _ in range(3):
        aggregator.take(block_of(request(sum_of("m", *(point(1, n=number) for number in range(20))))))
    flushed = aggregator.flush("none", topic="metrics", block_prefix="b-")
    found = {tuple(labels_of(one).items()): value_of(one) for one in points_in(flushed.blocks)}
    assert found == {(("n", number),): 3 for number in range(4)} | {(("otel.metric.overflow", True),): 48}
    assert flushed.overflowed == {"m": 48}


@pytest.mark.parametrize(
    ("make", "make_point"), [(histogram, histogram_point), (exponential, exponential_point)], ids=["histogram", "exponential"]
)
def test_histograms_past_the_limit_are_added_up_in_the_overflow_stream(make: Any, make_point: Any) -> None:
    blocks = aggregated(make("m", *(make_point(0.5 + number, n=number) for number in range(20))), max_streams=5)
    (overflow,) = (one for one in points_in(blocks) if "otel.metric.overflow" in labels_of(one))
    assert sum(one.count for one in points_in(blocks)) == 20
    assert overflow.count == 16


def test_of_gauges_past_the_limit_the_overflow_stream_has_the_last_value() -> None:
    aggregator = Aggregator(max_streams=3)
    taken = aggregator.take(block_of(request(gauge("m", *(point(number, at=number, n=number) for number in range(9))))))
    assert [value_of(one) for one in points_in(flush(aggregator))] == [0, 1, 8]
    assert (taken.points, taken.skipped) == (9, 0)


def test_cumulative_points_past_the_limit_are_left_out_counted_and_said_by_a_point_without_a_value() -> None:
    aggregator = Aggregator(max_streams=3)
    taken = aggregator.take(block_of(request(sum_of("m", *(point(number, n=number) for number in range(9)), temporality=CUMULATIVE))))
    flushed = aggregator.flush("none", topic="metrics", block_prefix="b-")
    found = points_in(flushed.blocks)
    assert [value_of(one) for one in found] == [0, 1, None]
    assert (labels_of(found[2]), found[2].flags) == ({"otel.metric.overflow": True}, NO_RECORDED_VALUE)
    assert (taken.points, taken.skipped, flushed.overflowed) == (9, 7, {"m": 7})


def test_an_overflow_stream_of_the_sender_and_ours_are_one() -> None:
    theirs = point(100, **{"otel.metric.overflow": True})
    blocks = aggregated(sum_of("m", *(point(1, n=number) for number in range(9)), theirs), max_streams=4)
    overflow = [value_of(one) for one in points_in(blocks) if "otel.metric.overflow" in labels_of(one)]
    assert overflow == [106]


def test_each_metric_and_each_resource_has_a_limit_of_its_own() -> None:
    aggregator = Aggregator(max_streams=3)
    for service in ("a", "b"):
        metrics = (sum_of(name, point(1, n=1), point(1, n=2)) for name in ("m", "n"))
        aggregator.take(block_of(request(*metrics, resource={"service.name": service})))
    flushed = aggregator.flush("none", topic="metrics", block_prefix="b-")
    assert len(points_in(flushed.blocks)) == 8
    assert flushed.overflowed == {}


def test_which_streams_are_within_the_limit_does_not_change_from_window_to_window() -> None:
    aggregator = Aggregator(max_streams=3)
    order = list(range(9))
    for _ in range(5):
        aggregator.take(block_of(request(gauge("m", *(point(number, n=number) for number in order)))))
        assert {labels_of(one).get("n") for one in points_in(flush(aggregator))} == {0, 1, None}
        order.reverse()


def test_a_stream_that_was_idle_for_long_makes_room_for_another() -> None:
    aggregator = Aggregator(max_streams=2, idle_windows=3)
    aggregator.take(block_of(request(sum_of("m", point(1, n="old")))))
    flush(aggregator)
    seen = []
    for _ in range(8):
        aggregator.take(block_of(request(sum_of("m", point(1, n="new")))))
        seen.append(labels_of(points_in(flush(aggregator))[0]).get("n"))
    assert seen[0] is None
    assert seen[-1] == "new"


def test_streams_that_stay_are_still_found_after_others_were_forgotten() -> None:
    aggregator = Aggregator(idle_windows=2)
    keep = [request(sum_of(f"m{number}", point(1, b="y", a="x"), point(2, a="z")), scope=f"s{number % 2}") for number in range(3)]
    for window in range(12):
        aggregator.take(block_of(request(sum_of("gone", *(point(1, n=number, window=window) for number in range(50))))))
        aggregator.take(block_of(*keep))
        aggregator.take(block_of(*keep))
        blocks = flush(aggregator)
        for number in range(3):
            assert [value_of(one) for one in points_in(blocks, f"m{number}")] == [2, 4]
    assert aggregator.stream_count < 250


# blocks


def test_blocks_hold_at_most_a_mebibyte_and_all_points() -> None:
    aggregator = Aggregator(max_streams=100_000)
    chance = random.Random(3)
    for service in range(20):
        metrics = [
            sum_of(f"metric.{name}", *(point(1, text=chance.randbytes(60).hex()) for _ in range(150)), description="d" * 50)
            for name in range(5)
        ]
        aggregator.take(block_of(request(*metrics, resource={"service.name": f"s{service}", "padding": "x" * 2000})))
    flushed = aggregator.flush("zstd", topic="metrics", block_prefix="b-")
    assert len(flushed.blocks) >= 3
    assert max(block.uncompressed_bytes for block in flushed.blocks) <= 1 << 20
    assert sum(block.records for block in flushed.blocks) == flushed.points == 20 * 5 * 150
    assert len({block.block_id for block in flushed.blocks}) == len(flushed.blocks)


def test_many_small_resources_are_counted_in_the_size_of_a_block() -> None:
    aggregator = Aggregator()
    requests = [
        request(gauge("g", point(1)), resource={"service.name": f"s{number}", "p": "x" * 500}, scope="y" * 300) for number in range(2500)
    ]
    aggregator.take(block_of(*requests))
    assert max(block.uncompressed_bytes for block in flush(aggregator)) <= 1 << 20


def test_a_point_larger_than_a_block_is_a_block_of_its_own() -> None:
    aggregator = Aggregator()
    aggregator.take(block_of(request(sum_of("m", point(1, a="x" * (2 << 20)), point(2), point(3, a="y" * (2 << 20))))))
    blocks = flush(aggregator)
    assert sorted(value_of(one) or 0 for one in points_in(blocks)) == [1, 2, 3]
    assert len(blocks) >= 2


def test_identities_of_a_window_come_out_under_the_resource_that_they_came_with() -> None:
    aggregator = Aggregator()
    for service in ("a", "b"):
        aggregator.take(block_of(request(gauge("m", point(1)), resource={"service.name": service}, resource_schema="https://x/1")))
    found = requests_in(flush(aggregator))
    assert [(labels_of(one.resource), one.schema_url) for one in found.resource_metrics] == [
        ({"service.name": "a"}, "https://x/1"),
        ({"service.name": "b"}, "https://x/1"),
    ]
