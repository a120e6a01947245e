"""The aggregator of the core: gauges and sums, and which streams are one. Everything that it makes is read by the official classes."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from emp_pipe._core import Aggregator, Block
from tests.support.metrics import (
    CUMULATIVE,
    DELTA,
    NO_RECORDED_VALUE,
    SECOND,
    T0,
    aggregated,
    block_of,
    flush,
    gauge,
    labels_of,
    metrics_in,
    point,
    points_in,
    request,
    requests_in,
    sum_of,
    value_of,
)


def values(blocks: list[Block]) -> list[float | None]:
    return [value_of(found) for found in points_in(blocks)]


def seconds(nanoseconds: int) -> float:
    return (nanoseconds - T0) / SECOND


# gauges


def test_of_a_gauge_the_last_value_by_time_is_kept_in_whatever_order_they_come() -> None:
    blocks = aggregated(gauge("g", point(1, at=1)), gauge("g", point(3, at=3)), gauge("g", point(2, at=2)))
    assert values(blocks) == [3]
    assert seconds(points_in(blocks)[0].time_unix_nano) == 3


def test_of_two_gauge_points_of_one_time_the_one_that_came_last_is_kept() -> None:
    assert values(aggregated(gauge("g", point(1, at=1)), gauge("g", point(2, at=1)))) == [2]


def test_a_gauge_may_change_from_int_to_double() -> None:
    assert values(aggregated(gauge("g", point(1, at=1)), gauge("g", point(2.5, at=2)))) == [2.5]


# sums


def test_delta_sums_are_added_up_over_the_whole_time() -> None:
    blocks = aggregated(
        sum_of("s", point(5, start=10, at=20)), sum_of("s", point(7, start=20, at=30)), sum_of("s", point(1, start=0, at=10))
    )
    (found,) = points_in(blocks)
    assert value_of(found) == 13
    assert (seconds(found.start_time_unix_nano), seconds(found.time_unix_nano)) == (0, 30)


def test_an_int_stays_an_int_and_a_double_a_double() -> None:
    blocks = aggregated(sum_of("i", point(1)), sum_of("i", point(2)), sum_of("d", point(0.5)), sum_of("d", point(0.25)))
    assert [found.WhichOneof("value") for found in points_in(blocks)] == ["as_int", "as_double"]
    assert values(blocks) == [3, 0.75]


def test_ints_and_doubles_of_one_stream_are_added_up_apart_so_that_no_int_loses_a_unit() -> None:
    big = 2**53 + 1
    blocks = aggregated(sum_of("s", point(big)), sum_of("s", point(0.5)), sum_of("s", point(1)), sum_of("s", point(0.25)))
    assert values(blocks) == [big + 1, 0.75]


def test_a_delta_sum_past_64_bits_goes_on_in_a_second_point_and_its_total_stays_right() -> None:
    most = 2**63 - 1
    assert values(aggregated(sum_of("s", point(most)), sum_of("s", point(10)), sum_of("s", point(5)))) == [most, 15]


def test_a_value_that_is_not_finite_does_not_swallow_the_others() -> None:
    blocks = aggregated(
        sum_of("s", point(1.5)), sum_of("s", point(float("inf"))), sum_of("s", point(2.0)), sum_of("s", point(float("nan")))
    )
    found = values(blocks)
    assert found[0] == 3.5
    assert str(found[1]) == "nan"


def test_a_delta_sum_that_falls_is_added_up_too() -> None:
    blocks = aggregated(sum_of("s", point(5), monotonic=False), sum_of("s", point(-7), monotonic=False))
    assert values(blocks) == [-2]


def test_an_unset_start_does_not_stand_for_the_beginning_of_time() -> None:
    blocks = aggregated(sum_of("s", point(5, at=20)), sum_of("s", point(7, start=20, at=30)))
    assert seconds(points_in(blocks)[0].start_time_unix_nano) == 20


def test_of_a_cumulative_sum_the_latest_is_kept_with_its_start() -> None:
    points = [point(value, start=0, at=at) for value, at in ((5, 10), (9, 20), (7, 15))]
    blocks = aggregated(*(sum_of("s", one, temporality=CUMULATIVE) for one in points))
    (found,) = points_in(blocks)
    assert (value_of(found), seconds(found.start_time_unix_nano), seconds(found.time_unix_nano)) == (9, 0, 20)


def test_a_new_start_time_is_a_reset_and_the_last_point_before_it_is_kept_as_well() -> None:
    points = [point(5, start=0, at=10), point(9, start=0, at=20), point(2, start=25, at=30), point(4, start=25, at=40)]
    blocks = aggregated(*(sum_of("s", one, temporality=CUMULATIVE) for one in points))
    assert values(blocks) == [9, 4]
    assert [seconds(found.start_time_unix_nano) for found in points_in(blocks)] == [0, 25]


@pytest.mark.parametrize("start", [None, 0])
def test_a_monotonic_value_that_falls_is_a_reset_where_the_start_does_not_say_so(start: int | None) -> None:
    points = [point(value, start=start, at=at) for value, at in ((5, 10), (9, 20), (2, 30), (4, 40), (1, 50))]
    blocks = aggregated(*(sum_of("s", one, temporality=CUMULATIVE) for one in points))
    assert values(blocks) == [9, 4, 1]


def test_a_cumulative_sum_that_may_fall_has_no_resets_by_value() -> None:
    points = [point(value, start=0, at=at) for value, at in ((5, 10), (9, 20), (2, 30))]
    blocks = aggregated(*(sum_of("s", one, temporality=CUMULATIVE, monotonic=False) for one in points))
    assert values(blocks) == [2]


def test_points_before_a_reset_are_found_in_any_order_of_arrival() -> None:
    points = [point(value, at=at) for value, at in ((9, 20), (2, 30), (5, 10), (4, 40))]
    blocks = aggregated(*(sum_of("s", one, temporality=CUMULATIVE) for one in points))
    assert values(blocks) == [9, 4]


def test_points_without_a_temporality_are_passed_on_one_by_one() -> None:
    blocks = aggregated(*(sum_of("s", point(value), temporality=0) for value in (1, 2, 3)))
    assert values(blocks) == [1, 2, 3]


# which streams are one


def test_the_order_of_attributes_does_not_make_another_stream() -> None:
    blocks = aggregated(sum_of("s", point(1, a="x", b="y")), sum_of("s", point(2, b="y", a="x")), sum_of("s", point(4, a="x", b="y")))
    (found,) = points_in(blocks)
    assert (value_of(found), labels_of(found)) == (7, {"a": "x", "b": "y"})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": "x"}, {"a": "y"}),
        ({"a": 1}, {"a": "1"}),
        ({"a": "x"}, {}),
        ({"a": "x"}, {"b": "x"}),
        ({"a": "x", "b": "y"}, {"a": "y", "b": "x"}),
    ],
)
def test_other_attributes_are_another_stream(one: dict[str, Any], other: dict[str, Any]) -> None:
    blocks = aggregated(sum_of("s", point(1, **one)), sum_of("s", point(2, **other)))
    assert [(value_of(found), labels_of(found)) for found in points_in(blocks)] == [(1, one), (2, other)]
    assert len(metrics_in(blocks)) == 1, "streams of one metric come as one metric"


@pytest.mark.parametrize(
    "other",
    [
        request(sum_of("s", point(2)), resource={"service.name": "other"}),
        request(sum_of("s", point(2)), scope="other"),
        request(sum_of("s", point(2)), resource_schema="https://example.com/1"),
        request(sum_of("s", point(2)), scope_schema="https://example.com/1"),
        request(sum_of("other", point(2))),
        request(sum_of("s", point(2), unit="s")),
        request(gauge("s", point(2))),
        request(sum_of("s", point(2), temporality=CUMULATIVE)),
        request(sum_of("s", point(2), monotonic=False)),
    ],
    ids=["resource", "scope", "resource schema", "scope schema", "name", "unit", "type", "temporality", "monotonicity"],
)
def test_each_part_of_the_identity_makes_another_stream(other: Any) -> None:
    aggregator = Aggregator()
    aggregator.take(block_of(request(sum_of("s", point(1)))))
    aggregator.take(block_of(other))
    assert sorted(value or 0 for value in values(flush(aggregator))) == [1, 2]


def test_resources_with_attributes_in_another_order_are_one() -> None:
    aggregator = Aggregator()
    aggregator.take(block_of(request(sum_of("s", point(1)), resource={"service.name": "a", "host.name": "b"})))
    aggregator.take(block_of(request(sum_of("s", point(2)), resource={"host.name": "b", "service.name": "a"})))
    blocks = flush(aggregator)
    assert values(blocks) == [3]
    assert len(requests_in(blocks).resource_metrics) == 1


def test_another_description_does_not_split_a_stream_and_the_last_one_is_kept() -> None:
    blocks = aggregated(sum_of("s", point(1), description="old"), sum_of("s", point(2), description="new"))
    (metric,) = metrics_in(blocks)
    assert (metric.description, [value_of(found) for found in metric.sum.data_points]) == ("new", [3])


# windows


def test_a_late_point_is_in_the_next_window() -> None:
    aggregator = Aggregator()
    aggregator.take(block_of(request(gauge("g", point(5, at=50)), sum_of("s", point(1, start=0, at=50)))))
    assert values(flush(aggregator)) == [5, 1]
    aggregator.take(block_of(request(gauge("g", point(2, at=20)), sum_of("s", point(2, start=0, at=20)))))
    late = flush(aggregator)
    assert values(late) == [2, 2]
    assert {seconds(found.time_unix_nano) for found in points_in(late)} == {20}


def test_a_window_without_points_makes_no_block() -> None:
    aggregator = Aggregator()
    aggregator.take(block_of(request(gauge("g", point(5)))))
    assert len(flush(aggregator)) == 1
    assert flush(aggregator) == []


def test_a_point_without_a_value_is_kept_beside_the_last_value() -> None:
    marker = point(None, at=30)
    marker.flags = NO_RECORDED_VALUE
    for make in (lambda one: gauge("m", one), lambda one: sum_of("m", one), lambda one: sum_of("m", one, temporality=CUMULATIVE)):
        blocks = aggregated(make(point(5, at=20)), make(marker), make(point(4, at=10)) if make(marker).HasField("gauge") else make(marker))
        found = points_in(blocks)
        assert [(value_of(one), one.flags) for one in found] == [(5, 0), (None, NO_RECORDED_VALUE)]


def test_a_point_without_a_value_says_nothing_once_a_value_follows() -> None:
    marker = point(None, at=15)
    marker.flags = NO_RECORDED_VALUE
    blocks = aggregated(gauge("m", point(5, at=10)), gauge("m", marker), gauge("m", point(6, at=20)))
    assert values(blocks) == [6]


def test_what_is_made_says_that_it_is_aggregated_and_counts_its_points() -> None:
    (block,) = aggregated(sum_of("s", point(1, a="x"), point(2, a="y")), gauge("g", point(1)))
    assert (block.aggregated, block.topic, block.signal, block.records) == (True, "metrics", "metrics", 3)


def test_a_metric_without_points_or_without_data_is_passed_on() -> None:
    blocks = aggregated(Metric(name="bare", description="nothing yet"), sum_of("empty"))
    assert [metric.name for metric in metrics_in(blocks)] == ["bare", "empty"]
    assert metrics_in(blocks)[1].sum.aggregation_temporality == DELTA
