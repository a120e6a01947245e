"""The aggregator of the core: histograms of both kinds, and summaries. Everything that it makes is read by the official classes."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, SummaryDataPoint

from tests.support.metrics import (
    CUMULATIVE,
    SECOND,
    T0,
    aggregated,
    bucket_of,
    buckets_of,
    exponential,
    exponential_point,
    histogram,
    histogram_point,
    points_in,
    summary,
)


def points(*metrics: Metric) -> list[Any]:
    return points_in(aggregated(*metrics))


def times(point: Any) -> tuple[float, float]:
    return (point.start_time_unix_nano - T0) / SECOND, (point.time_unix_nano - T0) / SECOND


# explicit bounds


def test_delta_histograms_are_added_up_bucket_by_bucket() -> None:
    one = histogram_point(0.5, 1.5, 9.0, start=0, at=10)
    other = histogram_point(0.7, 4.0, 4.5, start=10, at=20)
    (found,) = points(histogram("h", one), histogram("h", other))
    assert (found.count, found.sum, found.min, found.max) == (6, 20.2, 0.5, 9.0)
    assert list(found.bucket_counts) == [2, 1, 2, 1]
    assert list(found.explicit_bounds) == [1.0, 2.0, 5.0]
    assert times(found) == (0, 20)


def test_histograms_of_other_bounds_are_never_merged() -> None:
    mixed = [
        histogram_point(0.5),
        histogram_point(0.5, bounds=(1.0, 3.0, 5.0)),
        histogram_point(1.5),
        histogram_point(4.0, bounds=(1.0, 3.0, 5.0)),
    ]
    found = points(*(histogram("h", one) for one in mixed))
    assert [(list(one.explicit_bounds), list(one.bucket_counts)) for one in found] == [
        ([1.0, 2.0, 5.0], [1, 1, 0, 0]),
        ([1.0, 3.0, 5.0], [1, 0, 1, 0]),
    ]


def test_histograms_without_buckets_are_added_up_by_count_and_sum() -> None:
    one, other = histogram_point(1.0, 2.0, bounds=()), histogram_point(4.0, bounds=())
    for each in (one, other):
        del each.bucket_counts[:]
    (found,) = points(histogram("h", one), histogram("h", other))
    assert (found.count, found.sum, list(found.bucket_counts)) == (3, 7.0, [])


def test_extremes_that_only_one_has_are_not_invented_for_the_other() -> None:
    found = points(histogram("h", histogram_point(0.5)), histogram("h", histogram_point(9.0, extremes=False)))
    assert [(one.count, one.HasField("min")) for one in found] == [(1, True), (1, False)]


def test_an_empty_histogram_takes_nothing_away_from_the_extremes() -> None:
    (found,) = points(histogram("h", histogram_point()), histogram("h", histogram_point(0.5, 3.0)), histogram("h", histogram_point()))
    assert (found.count, found.min, found.max, found.sum) == (2, 0.5, 3.0, 3.5)


def test_a_histogram_without_a_sum_gets_none_and_one_with_a_sum_keeps_it() -> None:
    without = histogram_point(1.5)
    without.ClearField("sum")
    found = points(histogram("h", without), histogram("h", histogram_point(1.5)), histogram("h", without))
    assert [(one.count, one.HasField("sum")) for one in found] == [(2, False), (1, True)]


def test_a_histogram_whose_buckets_do_not_fit_its_bounds_is_passed_on_as_it_lies() -> None:
    broken = histogram_point(0.5)
    broken.bucket_counts.append(7)
    found = points(histogram("h", broken), histogram("h", histogram_point(1.5)), histogram("h", broken))
    assert sorted(one.SerializeToString() for one in found) == sorted(
        [broken.SerializeToString(), histogram_point(1.5).SerializeToString(), broken.SerializeToString()]
    )


def test_counts_past_64_bits_go_on_in_a_second_point() -> None:
    huge = histogram_point(0.5, extremes=False)
    huge.count = 2**64 - 1
    huge.bucket_counts[0] = 2**64 - 1
    found = points(histogram("h", huge), histogram("h", histogram_point(0.5, extremes=False)))
    assert [one.count for one in found] == [2**64 - 1, 1]


def test_of_a_cumulative_histogram_the_latest_is_kept_and_each_before_a_reset() -> None:
    counted = [
        histogram_point(0.5, start=0, at=10),
        histogram_point(0.5, 0.6, 0.7, start=0, at=20),
        histogram_point(0.5, start=25, at=30),
        histogram_point(0.5, 4.0, start=25, at=40),
    ]
    found = points(*(histogram("h", one, temporality=CUMULATIVE) for one in counted))
    assert [one.SerializeToString() for one in found] == [counted[1].SerializeToString(), counted[3].SerializeToString()]


def test_a_cumulative_count_that_falls_is_a_reset_where_the_start_does_not_say_so() -> None:
    counted = [histogram_point(0.5, 0.6, at=10), histogram_point(0.5, at=20), histogram_point(0.5, 0.7, at=30)]
    found = points(*(histogram("h", one, temporality=CUMULATIVE) for one in counted))
    assert [one.count for one in found] == [2, 2]


def test_cumulative_histograms_of_other_bounds_do_not_replace_each_other() -> None:
    counted = [histogram_point(0.5, start=0, at=at, bounds=bounds) for at in (10, 20, 30) for bounds in ((1.0,), (2.0,))]
    found = points(*(histogram("h", one, temporality=CUMULATIVE) for one in counted))
    assert [(list(one.explicit_bounds), times(one)[1]) for one in found] == [([1.0], 30), ([2.0], 30)]


# exponential


def test_exponential_histograms_of_one_scale_are_added_up() -> None:
    (found,) = points(exponential("e", exponential_point(1.1, 3.0, 0.0)), exponential("e", exponential_point(3.0, 100.0, -2.5)))
    assert (found.scale, found.count, found.zero_count, found.min, found.max) == (3, 6, 1, -2.5, 100.0)
    assert buckets_of(found) == {bucket_of(1.1, 3): 1, bucket_of(3.0, 3): 2, bucket_of(100.0, 3): 1}
    assert (found.negative.offset, list(found.negative.bucket_counts)) == (bucket_of(2.5, 3), [1])


@pytest.mark.parametrize(("one", "other"), [(3, 1), (1, 3), (5, -2), (0, -1)])
def test_the_finer_one_is_downscaled_to_the_coarser_scale(one: int, other: int) -> None:
    chance = random.Random(1)
    values = [[chance.uniform(0.01, 1000) for _ in range(50)] for _ in range(2)]
    (found,) = points(
        exponential("e", exponential_point(*values[0], scale=one)), exponential("e", exponential_point(*values[1], scale=other))
    )
    scale = min(one, other)
    assert found.scale == scale
    assert buckets_of(found) == Counter(bucket_of(value, scale) for value in values[0] + values[1])


def test_buckets_far_apart_are_downscaled_until_they_are_few_and_no_count_is_lost() -> None:
    (found,) = points(exponential("e", exponential_point(1e-9, scale=20)), exponential("e", exponential_point(1e9, 1.00001e9, scale=20)))
    assert found.scale < 20
    assert len(found.positive.bucket_counts) <= 160
    assert buckets_of(found) == Counter(bucket_of(value, found.scale) for value in (1e-9, 1e9, 1.00001e9))


def test_a_sender_with_more_buckets_than_usual_keeps_its_resolution_and_a_point_with_far_too_many_is_passed_on() -> None:
    many = exponential_point(1.0001, 1.5, scale=9)
    assert 160 < len(many.positive.bucket_counts) < 1024
    (both,) = points(exponential("e", many), exponential("e", many))
    assert (both.scale, len(both.positive.bucket_counts)) == (9, len(many.positive.bucket_counts))
    far_too_many = exponential_point(1.0001, 1.5, scale=16)
    found = points(exponential("e", far_too_many), exponential("e", many), exponential("e", far_too_many))
    assert [one.scale for one in found] == [16, 9, 16], "a point of any size is passed on rather than blurred"


def test_the_larger_zero_threshold_takes_in_the_buckets_below_it() -> None:
    small, large = exponential_point(0.1, 0.3, 7.0, -0.2), exponential_point(0.4, 9.0, zero_threshold=0.5)
    (found,) = points(exponential("e", small), exponential("e", large))
    assert (found.zero_threshold, found.zero_count, found.count) == (0.5, 4, 6)
    assert buckets_of(found) == {bucket_of(7.0, 3): 1, bucket_of(9.0, 3): 1}
    assert not found.negative.bucket_counts


def test_a_threshold_inside_a_filled_bucket_is_raised_to_its_end() -> None:
    # 0.9 and the threshold 0.87 lie in one bucket of scale 1: (0.707, 1]
    (found,) = points(
        exponential("e", exponential_point(0.9, 3.0, scale=1)), exponential("e", exponential_point(0.1, scale=1, zero_threshold=0.87))
    )
    assert (found.zero_threshold, found.zero_count) == (1.0, 2)
    assert buckets_of(found) == {bucket_of(3.0, 1): 1}


def test_a_threshold_that_cannot_be_one_keeps_its_point_apart() -> None:
    odd = exponential_point(3.0)
    odd.zero_threshold = float("nan")
    found = points(exponential("e", odd), exponential("e", exponential_point(3.0)), exponential("e", exponential_point(3.0)))
    assert sorted(one.count for one in found) == [1, 2]


def test_offsets_and_scales_at_their_ends_are_bounded_in_memory_and_lose_nothing() -> None:
    def extreme(offset: int, scale: int) -> Metric:
        point = exponential_point(3.0)
        point.scale = scale
        point.positive.offset = offset
        return exponential("e", point)

    least, most = -(2**31), 2**31 - 1
    found = points(extreme(least, 0), extreme(most, 0), extreme(0, most), extreme(0, 20), extreme(most, most), extreme(least, least))
    assert sum(one.count for one in found) == 6
    assert sum(sum(one.positive.bucket_counts) for one in found) == 6
    assert all(len(one.positive.bucket_counts) <= 160 for one in found)


def test_empty_buckets_at_the_ends_are_left_out() -> None:
    padded = exponential_point(3.0)
    padded.positive.offset -= 2
    del padded.positive.bucket_counts[:]
    padded.positive.bucket_counts.extend([0, 0, 1, 0, 0, 0])
    (found,) = points(exponential("e", padded), exponential("e", exponential_point(3.0)))
    assert (found.positive.offset, list(found.positive.bucket_counts)) == (bucket_of(3.0, 3), [2])


def test_of_a_cumulative_exponential_histogram_the_latest_is_kept_as_it_lies_and_each_before_a_reset() -> None:
    counted = [
        exponential_point(0.5, start=0, at=10),
        exponential_point(0.5, 7.0, start=0, at=20),
        exponential_point(0.5, scale=7, start=0, at=30),
        exponential_point(0.5, 1.0, scale=7, start=35, at=40),
    ]
    found = points(*(exponential("e", one, temporality=CUMULATIVE) for one in counted))
    assert [one.SerializeToString() for one in found] == [one.SerializeToString() for one in counted[1:]]


# summaries


def test_of_a_summary_the_latest_is_kept_and_each_before_a_reset() -> None:
    def one(count: int, at: int, start: int) -> SummaryDataPoint:
        point = SummaryDataPoint(count=count, sum=count * 2.0, time_unix_nano=T0 + at * SECOND, start_time_unix_nano=T0 + start * SECOND)
        point.quantile_values.add(quantile=0.5, value=2.0)
        return point

    counted = [one(5, 10, 0), one(9, 20, 0), one(2, 30, 0), one(1, 40, 35)]
    found = points(*(summary("y", each) for each in counted))
    assert [each.SerializeToString() for each in found] == [each.SerializeToString() for each in counted[1:]]
