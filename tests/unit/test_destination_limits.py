"""Promises of selections and limits: what a header proves, what happens to rows, and that nothing is left out without a count."""

from __future__ import annotations

import json

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from emp_pipe import _core
from tests.support.otlp_rows import (
    NOW,
    attributes,
    bodies,
    log,
    log_batch,
    logs_of,
    metric_batch,
    metrics_of,
    plain,
    plain_attributes,
    span_batch,
    spans_of,
)

HOUR_NS = 3600 * 10**9
DASH0 = _core.DestinationLimits(
    max_age_s=6 * 3600,
    max_ahead_s=72 * 3600,
    max_body_bytes=4096,
    max_log_attributes=16,
    max_span_attributes=32,
    max_span_events=8,
    max_trace_spans=2000,
    max_key_bytes=128,
    max_value_bytes=2048,
)


def block(batch: _core.Batch) -> _core.Block:
    return batch.to_block("none", topic="logs", block_id="b")


@pytest.mark.parametrize(
    ("row", "limit"),
    [
        (log(time=NOW - 7 * HOUR_NS), "max_age_s"),
        (log(time=NOW + 73 * HOUR_NS), "max_ahead_s"),
        (log("x" * 4097), "max_body_bytes"),
        (log({"x": "x" * 4097}), "max_body_bytes"),
        (log(attrs={f"k{index}": index for index in range(17)}), "max_log_attributes"),
        (log(attrs={"k" * 129: 1}), "max_key_bytes"),
        (log(attrs={"k": "x" * 2049}), "max_value_bytes"),
        (log(attrs={"k": ["x" * 2049]}), "max_value_bytes"),
    ],
)
def test_a_row_past_a_limit_is_seen_in_the_header_and_counted(row: object, limit: str) -> None:
    batch = log_batch(log("fine"), row)  # type: ignore[arg-type]

    assert not DASH0.block_passes(block(batch), NOW)
    limited = DASH0.apply(batch, NOW)
    assert limited.truncated == {limit: 1}
    assert (len(limited.batch or ()), len(limited.expired or ())) == ((1, 1) if limit in ("max_age_s", "max_ahead_s") else (2, 0))
    assert limited.batch is not None
    assert DASH0.block_passes(block(limited.batch), NOW), "what came out passes"


def test_rows_within_every_limit_pass_unchanged() -> None:
    batch = log_batch(log("x" * 4096, time=NOW - 6 * HOUR_NS, attrs={"k" * 128: "v" * 2048}), log(time=0))

    assert DASH0.block_passes(block(batch), NOW)
    limited = DASH0.apply(batch, NOW)
    assert (limited.expired, limited.truncated) == (None, {})
    assert logs_of(limited.batch) == logs_of(batch)


def test_a_shortened_text_ends_at_a_character_and_with_a_mark() -> None:
    limits = _core.DestinationLimits(max_body_bytes=10, max_value_bytes=8, max_key_bytes=6)
    row = logs_of(limits.apply(log_batch(log("ääääääää", attrs={"long_key_a": "0123456789", "n": 1})), NOW).batch)[0]

    assert plain(row.body) == "äää…"
    assert plain_attributes(row.attributes) == {"lon…": "01234…", "n": 1}


def test_shortened_keys_that_meet_are_left_out_and_counted_in_the_row() -> None:
    limits = _core.DestinationLimits(max_key_bytes=6)
    row = logs_of(limits.apply(log_batch(log(attrs={"long_key_a": 1, "long_key_b": 2})), NOW).batch)[0]

    assert (plain_attributes(row.attributes), row.dropped_attributes_count) == ({"lon…": 1}, 1)


def test_the_standard_fields_stay_when_attributes_must_go() -> None:
    limits = _core.DestinationLimits(max_log_attributes=3)
    attrs = {"a": 1, "b": 2, "event_type": "job_failed", "c": 3, "job_id": "job-1"}
    limited = limits.apply(log_batch(log(attrs=attrs, dropped_attributes_count=5)), NOW)

    row = logs_of(limited.batch)[0]
    assert plain_attributes(row.attributes) == {"a": 1, "event_type": "job_failed", "job_id": "job-1"}
    assert row.dropped_attributes_count == 7
    assert limited.truncated == {"max_log_attributes": 2}


def test_a_map_that_is_too_long_becomes_marked_text() -> None:
    limits = _core.DestinationLimits(max_value_bytes=12)
    row = logs_of(limits.apply(log_batch(log(attrs={"m": {"key": "long value"}})), NOW).batch)[0]

    assert plain_attributes(row.attributes) == {"m": '{"key":"l…'}


def test_spans_lose_excess_events_and_attributes_with_their_counts() -> None:
    limits = _core.DestinationLimits(max_span_attributes=2, max_span_events=1, max_value_bytes=8)
    event = Span.Event(name="e", attributes=attributes({"stack": "0123456789"}))
    span = Span(name="s", start_time_unix_nano=NOW, attributes=attributes({"a": 1, "b": 2, "c": 3}), events=[event, event, event])
    batch = span_batch(span)
    limited = limits.apply(batch, NOW)

    span = spans_of(limited.batch)[0]
    assert (len(span.attributes), span.dropped_attributes_count) == (2, 1)
    assert (len(span.events), span.dropped_events_count) == (1, 2)
    assert plain_attributes(span.events[0].attributes) == {"stack": "01234…"}
    assert limited.truncated == {"max_span_attributes": 1, "max_span_events": 2, "max_value_bytes": 1}


def test_of_a_spans_events_exceptions_stay_when_others_must_go() -> None:
    limits = _core.DestinationLimits(max_span_events=2)
    events = [Span.Event(name=name) for name in ("a", "b", "exception", "c")]
    limited = limits.apply(span_batch(Span(name="s", start_time_unix_nano=NOW, events=events, dropped_events_count=3)), NOW)

    span = spans_of(limited.batch)[0]
    assert [event.name for event in span.events] == ["a", "exception"]
    assert span.dropped_events_count == 5


def test_attributes_of_events_and_links_are_shortened_like_the_spans_own() -> None:
    limits = _core.DestinationLimits(max_key_bytes=6, max_value_bytes=8)
    link = Span.Link(trace_id=bytes([1] * 16), span_id=bytes([1] * 8), attributes=attributes({"why": "0123456789"}), flags=3)
    event = Span.Event(name="e", attributes=attributes({"long_key_a": 1, "long_key_b": 2}))
    batch = span_batch(Span(name="s", start_time_unix_nano=NOW, links=[link], events=[event]))

    assert not limits.block_passes(block(batch), NOW)
    limited = limits.apply(batch, NOW)
    span = spans_of(limited.batch)[0]
    assert plain_attributes(span.links[0].attributes) == {"why": "01234…"}
    assert (span.links[0].flags, span.links[0].trace_id) == (3, bytes([1] * 16))
    assert (plain_attributes(span.events[0].attributes), span.events[0].dropped_attributes_count) == ({"lon…": 1}, 1)
    assert limited.truncated == {"max_value_bytes": 1, "max_key_bytes": 2}
    assert limited.batch is not None
    assert limits.block_passes(block(limited.batch), NOW), "what came out passes"


LONG, OTHER = "x" * 300, "x" * 300 + "y"


def metric_of(kind: str) -> Metric:
    """A metric with two points that differ in the end of a long value only."""
    metric = Metric(name="m", unit="1")
    for value in (LONG, OTHER):
        point = getattr(metric, kind).data_points.add(time_unix_nano=NOW, attributes=attributes({"model": value, "k" * 250: 1}))
        if kind != "summary":
            point.exemplars.add(time_unix_nano=NOW, as_double=1.0, filtered_attributes=attributes({"path": LONG}))
    return metric


@pytest.mark.parametrize("kind", ["gauge", "sum", "histogram", "exponential_histogram", "summary"])
def test_attributes_of_points_are_shortened_and_their_streams_stay_apart(kind: str) -> None:
    limits = _core.DestinationLimits(max_key_bytes=200, max_value_bytes=200)
    metric = metric_of(kind)
    batch = metric_batch(metric)

    assert not limits.block_passes(block(batch), NOW)
    limited = limits.apply(batch, NOW)
    (row,) = metrics_of(limited.batch)
    points = getattr(row, kind).data_points
    values = [plain_attributes(point.attributes)["model"] for point in points]
    assert all(value.startswith("x" * 189 + "…") and len(value.encode()) == 200 for value in values)
    assert len(set(values)) == 2, "two streams became one"
    assert all(len(pair.key.encode()) <= 200 for point in points for pair in point.attributes)
    exemplars = 0 if kind == "summary" else 2
    assert limited.truncated == {"max_key_bytes": 2, "max_value_bytes": 2 + exemplars}
    for point, before in zip(points, getattr(metric, kind).data_points, strict=True):
        assert all(
            len(pair.value.string_value.encode()) <= 200 for one in getattr(point, "exemplars", ()) for pair in one.filtered_attributes
        )
        point.CopyFrom(before)
    assert row == metric, "everything else is as it was"
    assert limited.batch is not None
    assert limits.block_passes(block(limited.batch), NOW), "what came out passes"


def test_points_within_the_limits_pass_unchanged_whatever_their_age_and_number_of_attributes() -> None:
    metric = Metric(name="m")
    metric.gauge.data_points.add(time_unix_nano=1, attributes=attributes({f"k{index}": "v" for index in range(100)}))
    batch = metric_batch(metric)

    assert DASH0.block_passes(block(batch), NOW)
    assert metrics_of(DASH0.apply(batch, NOW).batch) == [metric]


def test_spans_past_the_limit_of_a_trace_are_set_apart_not_lost() -> None:
    limits = _core.DestinationLimits(max_trace_spans=2)
    batch = span_batch(*(Span(name=str(index), trace_id=bytes([1] * 16)) for index in range(5)))

    assert not limits.block_passes(block(batch), NOW)
    limited = limits.apply(batch, NOW)
    assert [span.name for span in spans_of(limited.batch)] == ["0", "1"]
    assert [span.name for span in spans_of(limited.trace_too_large)] == ["2", "3", "4"]
    assert limited.truncated == {"max_trace_spans": 3}


def test_a_limit_that_cannot_hold_the_mark_is_refused() -> None:
    with pytest.raises(_core.CoreError, match="max_key_bytes must be 0"):
        _core.DestinationLimits(max_key_bytes=2)


def select(**rules: dict[str, object]) -> _core.Selection:
    return _core.Selection(**{name: json.dumps(rule) for name, rule in rules.items()})  # type: ignore[arg-type]


MIXED = [
    log("debug", severity=5, attrs={"env": "prod"}),
    log("warn", severity=13, attrs={"n": 1}),
    log("error", severity=17),
    log("bare", severity=0),
]


@pytest.mark.parametrize(
    ("rules", "proved", "rows"),
    [
        ({}, "all", ["debug", "warn", "error", "bare"]),
        ({"only": {"signals": ["logs"]}}, "all", ["debug", "warn", "error", "bare"]),
        ({"only": {"signals": ["traces"]}}, "none", []),
        ({"except_": {"signals": ["logs"]}}, "none", []),
        ({"only": {"tags": ["app.**"]}}, "all", ["debug", "warn", "error", "bare"]),
        ({"only": {"tags": ["db", "d*.**"]}}, "none", []),
        ({"only": {"min_severity": "warn"}}, "some", ["warn", "error"]),
        ({"except_": {"min_severity": "WARN"}}, "some", ["debug", "bare"]),
        ({"only": {"services": ["api", "web"]}}, "all", ["debug", "warn", "error", "bare"]),
        ({"except_": {"services": ["api"]}}, "none", []),
        ({"only": {"attributes": {"env": "prod"}}}, "some", ["debug"]),
        ({"only": {"attributes": {"n": "1"}}}, "some", ["warn"]),
        ({"only": {"attributes": {"service.name": "api"}}}, "some", ["debug", "warn", "error", "bare"]),
        ({"only": {"min_severity": "warn"}, "except_": {"min_severity": "error"}}, "some", ["warn"]),
        ({"only": {"min_severity": "fatal"}}, "none", []),
    ],
)
def test_a_header_proves_no_more_than_the_rows_show(rules: dict[str, dict[str, object]], proved: str, rows: list[str]) -> None:
    batch = log_batch(*MIXED, tag="app.web")
    selection = select(**rules)

    assert selection.of_block(block(batch)) == proved
    assert bodies(selection.apply(batch)) == rows


def test_a_selection_that_cannot_be_understood_is_refused() -> None:
    with pytest.raises(_core.CoreError, match='"loud" is no level'):
        select(only={"min_severity": "loud"})
    with pytest.raises(_core.CoreError, match="unknown field"):
        select(only={"tagz": []})
