"""RED metrics: every call is counted once, by what it was, with the weight that its sampler gave it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emp_pipe._core import Block, CoreError
from emp_pipe.component import Derived, Wiring
from emp_pipe.log.protocol import Delivery, Topic
from emp_pipe.processors.red_metrics import RedMetrics, RedMetricsConfig
from tests.support.blocks import block as logs_block
from tests.support.context import make_context
from tests.support.metrics import DELTA, SECOND, T0, labels_of, metrics_in, points_in, requests_in, value_of
from tests.support.spans import CLIENT, ERROR, OK, span, spans_block

NOW = T0 + 100 * SECOND


class Red:
    """The deriver, called as its loop does."""

    def __init__(self, wiring: Wiring | None = None, **settings: Any) -> None:
        self.context = replace(make_context(), wiring=wiring or Wiring(red_runs=True, tail_samples=True, aggregates=True, codec="none"))
        self.deriver = RedMetrics("red_metrics", RedMetricsConfig(**settings), self.context)
        self.deriver.restore({})
        self._offset = 0

    def take(self, *blocks: Block, at: int = NOW) -> None:
        for block in blocks:
            self._offset += 1
            self.deriver.take(Delivery("red_metrics", "traces.in", self._offset, block), at)

    def tick(self, at: int = NOW + SECOND) -> Derived:
        derived = self.deriver.tick(at, final=False)
        assert derived is not None
        return derived

    def metric(self, outcome: str) -> float:
        labels = {"component": "red_metrics", "outcome": outcome}
        return self.context.metrics.registry.get_sample_value("emp_pipe_red_spans_total", labels) or 0.0


def derived(*blocks: Block, **settings: Any) -> list[Block]:
    red = Red(**settings)
    red.take(*blocks)
    return list(red.tick().outputs)


def calls(blocks: list[Block]) -> dict[tuple[Any, ...], float | None]:
    """By span name, kind and status: the calls."""
    found = {}
    for one in points_in(blocks, "traces.span.metrics.calls"):
        labels = labels_of(one)
        found[labels.get("span.name"), labels["span.kind"], labels["status.code"]] = value_of(one)
    return found


def test_calls_are_counted_by_name_kind_and_status() -> None:
    block = spans_block(
        span("a"), span("a"), span("a", status=ERROR), span("a", status=OK), span("a", kind=CLIENT), span("b", status=ERROR)
    )
    assert calls(derived(block)) == {
        ("a", "SPAN_KIND_SERVER", "STATUS_CODE_UNSET"): 2,
        ("a", "SPAN_KIND_SERVER", "STATUS_CODE_ERROR"): 1,
        ("a", "SPAN_KIND_SERVER", "STATUS_CODE_OK"): 1,
        ("a", "SPAN_KIND_CLIENT", "STATUS_CODE_UNSET"): 1,
        ("b", "SPAN_KIND_SERVER", "STATUS_CODE_ERROR"): 1,
    }


def test_calls_are_a_monotonic_delta_sum_of_ints_over_the_time_between_two_ticks() -> None:
    red = Red()
    red.take(spans_block(span()), at=NOW)
    red.tick(NOW + SECOND)
    red.take(spans_block(span()), at=NOW + 2 * SECOND)
    (metric,) = (one for one in metrics_in(red.tick(NOW + 3 * SECOND).outputs) if one.name == "traces.span.metrics.calls")
    assert (metric.sum.aggregation_temporality, metric.sum.is_monotonic) == (DELTA, True)
    (point,) = metric.sum.data_points
    assert point.WhichOneof("value") == "as_int"
    assert (point.start_time_unix_nano, point.time_unix_nano) == (NOW + SECOND, NOW + 3 * SECOND)


def test_durations_are_a_histogram_with_sum_and_extremes() -> None:
    block = spans_block(span(seconds=0.003), span(seconds=0.1), span(seconds=0.11), span(seconds=20.0))
    (metric,) = (one for one in metrics_in(derived(block)) if one.name == "traces.span.metrics.duration")
    assert (metric.unit, metric.histogram.aggregation_temporality) == ("s", DELTA)
    (point,) = metric.histogram.data_points
    assert (point.count, round(point.sum, 6), point.min, point.max) == (4, 20.213, 0.003, 20.0)
    buckets = dict(zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True))
    assert {bound: count for bound, count in buckets.items() if count} == {0.004: 1, 0.1: 1, 0.2: 1, float("inf"): 1}


def test_durations_may_be_in_milliseconds() -> None:
    (metric,) = (one for one in metrics_in(derived(spans_block(span(seconds=0.003)), unit="ms", bounds_s=(0.002, 0.0045))) if one.unit)
    assert metric.unit == "ms"
    (point,) = metric.histogram.data_points
    assert (list(point.explicit_bounds), list(point.bucket_counts), point.sum) == ([2.0, 4.5], [0, 1, 0], 3.0)


def test_durations_may_be_an_exponential_histogram() -> None:
    block = spans_block(*(span(seconds=0.001 * (number + 1)) for number in range(1000)), span(seconds=0))
    (point,) = (one for one in points_in(derived(block, histogram="exponential"), "traces.span.metrics.duration"))
    assert (point.count, point.zero_count) == (1001, 1)
    assert sum(point.positive.bucket_counts) == 1000
    assert len(point.positive.bucket_counts) <= 160
    base = 2 ** (2**-point.scale)
    below = sum(count for at, count in enumerate(point.positive.bucket_counts) if base ** (point.positive.offset + at + 1) <= 0.5)
    assert 450 <= below <= 500, "values are not in the buckets where they belong"


@pytest.mark.parametrize(("th", "weight"), [("8", 2), ("c", 4), ("0", 1), ("", 1)])
def test_a_span_counts_as_many_times_as_its_sampler_left_out(th: str, weight: int) -> None:
    blocks = derived(spans_block(span("a", th=th, seconds=0.3)))
    assert list(calls(blocks).values()) == [weight]
    (point,) = points_in(blocks, "traces.span.metrics.duration")
    assert (point.count, sum(point.bucket_counts), round(point.sum, 9)) == (weight, weight, round(0.3 * weight, 9))


def test_a_weight_that_is_no_whole_number_is_right_in_the_mean_and_the_same_every_time() -> None:
    # th:4: three of four are kept, each stands for 4/3 calls
    block = spans_block(*(span("a", th="4") for _ in range(3000)))
    (counted,) = calls(derived(block)).values()
    assert counted is not None
    assert abs(counted - 4000) < 120, "the adjusted counts do not add up to the calls"
    assert list(calls(derived(block)).values()) == [counted], "a replay counts otherwise"
    (point,) = points_in(derived(block), "traces.span.metrics.duration")
    assert point.count == counted


def test_a_tracestate_that_breaks_the_rules_counts_its_span_once() -> None:
    broken = span("a")
    broken.trace_state = "ot=th:zz"
    assert list(calls(derived(spans_block(broken))).values()) == [1]


def test_exemplars_are_the_slowest_calls_and_lead_to_their_spans() -> None:
    slow = [span(seconds=seconds) for seconds in (3.0, 2.0)]
    (point,) = points_in(derived(spans_block(*(span() for _ in range(20)), *slow), max_exemplars=2), "traces.span.metrics.duration")
    found = {(one.trace_id, one.span_id, one.as_double, one.time_unix_nano) for one in point.exemplars}
    assert found == {(one.trace_id, one.span_id, (one.end_time_unix_nano - T0) / SECOND, one.end_time_unix_nano) for one in slow}


def test_no_exemplars_where_none_are_wanted() -> None:
    (point,) = points_in(derived(spans_block(span()), max_exemplars=0), "traces.span.metrics.duration")
    assert list(point.exemplars) == []


def test_the_metrics_have_the_resource_of_their_spans() -> None:
    blocks = [spans_block(span("a"), resource={"service.name": name, "machine_id": "m1"}) for name in ("shop", "bank", "shop")]
    found = requests_in(derived(*blocks)).resource_metrics
    by_service = {labels_of(one.resource)["service.name"]: one for one in found}
    assert set(by_service) == {"shop", "bank"}
    assert labels_of(by_service["shop"].resource) == {"service.name": "shop", "machine_id": "m1"}
    shop_calls = by_service["shop"].scope_metrics[0].metrics[0].sum.data_points
    assert [value_of(one) for one in shop_calls] == [2]
    assert by_service["shop"].scope_metrics[0].scope.name == "emp_pipe.red_metrics"


def test_dimensions_are_span_attributes_of_any_type_and_absent_ones_are_left_out() -> None:
    block = spans_block(
        span("a", **{"http.route": "/x", "code": 200}), span("a", **{"http.route": "/x", "code": 500}), span("a", other="y")
    )
    found = points_in(derived(block, dimensions=["http.route", "code"]), "traces.span.metrics.calls")
    labels = [{key: value for key, value in labels_of(one).items() if key in ("http.route", "code", "other")} for one in found]
    assert labels == [{"http.route": "/x", "code": 200}, {"http.route": "/x", "code": 500}, {}]


def test_span_names_past_the_limit_are_counted_together_and_their_errors_apart() -> None:
    red = Red(max_span_names=3)
    red.take(spans_block(*(span(f"GET /{number}", status=ERROR if number % 2 else 0) for number in range(10))))
    blocks = list(red.tick().outputs)
    found = calls(blocks)
    assert sum(value or 0 for value in found.values()) == 10
    assert found[None, "SPAN_KIND_SERVER", "STATUS_CODE_ERROR"] == 4
    assert found[None, "SPAN_KIND_SERVER", "STATUS_CODE_UNSET"] == 3
    overflow = [labels_of(one) for one in points_in(blocks) if "span.name" not in labels_of(one)]
    assert all(labels["otel.metric.overflow"] is True for labels in overflow)
    assert red.metric("overflowed") == 7
    red.take(spans_block(span("GET /0"), span("GET /new")))
    assert set(calls(list(red.tick().outputs))) == {
        ("GET /0", "SPAN_KIND_SERVER", "STATUS_CODE_UNSET"),
        (None, "SPAN_KIND_SERVER", "STATUS_CODE_UNSET"),
    }, "the names of one tick are not those of the next"


def test_each_resource_has_span_names_of_its_own() -> None:
    blocks = [spans_block(span("only"), resource={"service.name": f"s{number}"}) for number in range(5)]
    assert len(points_in(derived(*blocks, max_span_names=1), "traces.span.metrics.calls")) == 5
    assert all("span.name" in labels_of(one) for one in points_in(derived(*blocks, max_span_names=1)))


def test_names_not_seen_for_an_hour_make_room() -> None:
    red = Red(max_span_names=1)
    red.take(spans_block(span("old")))
    red.tick()
    later = NOW + 2 * 3600 * SECOND
    red.take(spans_block(span("old")), at=later - 3600 * SECOND // 2)
    red.take(spans_block(span("new")), at=later)
    assert (None, "SPAN_KIND_SERVER", "STATUS_CODE_UNSET") in calls(list(red.tick(later).outputs))
    much_later = later + 2 * 3600 * SECOND
    red.take(spans_block(span("filler")), at=much_later)
    red.tick(much_later)
    red.take(spans_block(span("new")), at=much_later)
    assert ("new", "SPAN_KIND_SERVER", "STATUS_CODE_UNSET") in calls(list(red.tick(much_later).outputs))


def test_a_span_that_ends_before_it_begins_took_no_time() -> None:
    backwards = span("a")
    backwards.end_time_unix_nano = 0
    (point,) = points_in(derived(spans_block(backwards)), "traces.span.metrics.duration")
    assert (point.count, point.sum) == (1, 0)


def test_names_of_metrics_begin_with_the_namespace() -> None:
    assert [one.name for one in metrics_in(derived(spans_block(span()), namespace="red"))] == ["red.calls", "red.duration"]


# what becomes of the blocks


@pytest.mark.parametrize("tail_samples", [True, False])
@pytest.mark.parametrize("aggregates", [True, False])
def test_blocks_go_on_to_traces_only_where_nothing_samples_them(tail_samples: bool, aggregates: bool) -> None:
    red = Red(Wiring(red_runs=True, tail_samples=tail_samples, aggregates=aggregates, codec="zstd"))
    block = spans_block(span(), codec="gzip")
    red.take(block)
    derived = red.tick()
    metrics_topic = "metrics.in" if aggregates else "metrics"
    assert [delivery.block for delivery in derived.acks] == [block]
    assert [one.topic for one in derived.outputs] == [metrics_topic, *([] if tail_samples else ["traces"])]
    assert {one.topic for one in derived.outputs} == {topic.value for topic in red.deriver.writes}
    if not tail_samples:
        passed = derived.outputs[-1]
        assert (passed.red_done, passed.block_id, bytes(memoryview(passed))) == (True, block.block_id, bytes(memoryview(block)))


def test_blocks_that_were_counted_before_are_passed_and_not_counted_again() -> None:
    red = Red(Wiring(red_runs=True, codec="none"))
    red.take(spans_block(span()).with_flags(red_done=True))
    (passed,) = red.tick().outputs
    assert (passed.topic, passed.red_done) == ("traces", True)
    assert (red.metric("done_before"), red.metric("counted")) == (1, 0)


def test_a_restart_begins_with_nothing_and_counts_the_same_blocks_alike() -> None:
    red = Red()
    block = spans_block(span("a"), span("a"))
    red.take(block)
    red.deriver.restore({})
    assert red.deriver.tick(NOW, final=False) is None
    red.take(block)
    assert list(calls(list(red.tick().outputs)).values()) == [2]


def test_a_span_that_cannot_be_read_is_left_out_and_the_others_are_counted() -> None:
    good = spans_block(span("aaaa"), span("bbbb"))
    payload = good.payload("none").replace(b"\x2a\x04bbbb", b"\x2a\x7fbbbb")
    red = Red()
    red.take(Block(good.header, payload))
    assert list(calls(list(red.tick().outputs)).values()) == [1]
    assert red.metric("unreadable") == 1


def test_a_block_of_another_signal_is_refused() -> None:
    with pytest.raises(CoreError, match="of logs, not of traces"):
        Red().take(logs_block([1]))


@pytest.mark.parametrize(
    "settings", [{"bounds_s": (1.0, 0.5)}, {"bounds_s": (0.0, 1.0)}, {"namespace": ""}, {"max_span_names": 0}, {"unit": "h"}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RedMetricsConfig(**settings)


def test_what_is_read_and_written_is_said() -> None:
    assert Red().deriver.reads == {Topic.TRACES_IN}
