"""Promises of batches towards Arrow and of what makes a new batch out of one: select, enrich, redact."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from emp_pipe import _core
from tests.support.otlp_rows import NOW, bodies, log, log_batch, logs_of, plain, plain_attributes, span_batch

TRACE_ID = bytes(range(16))
OBSERVED = {"observed_time_unix_nano": 5}


@pytest.fixture
def rows() -> _core.Batch:
    return log_batch(
        log(
            "one", attrs={"job_id": "job-1", "count": 7, "host": "row"}, severity_text="INFO", trace_id=TRACE_ID, observed_time_unix_nano=5
        ),
        log({"nested": [1, True]}, severity=17, attrs={"ratio": 0.5, "blob": b"\x00\xff", "event_type": "job_failed"}),
        log("three", time=0, severity=0),
        resource={"service.name": "api", "host": "resource"},
    )


def test_known_columns_and_attributes_come_as_arrow(rows: _core.Batch) -> None:
    asked = ["time_unix_nano", "severity_number", "severity_text", "body", "trace_id", "span_id", "is_error", "is_event", "tag"]
    table = pa.record_batch(rows.to_arrow([*asked, "observed_time_unix_nano", "job_id", "count", "ratio", "blob", "host", "absent"]))

    assert table.to_pydict() == {
        "time_unix_nano": [NOW, NOW, 0],
        "severity_number": [9, 17, 0],
        "severity_text": ["INFO", None, None],
        "body": ["one", '{"nested":[1,true]}', "three"],
        "trace_id": [TRACE_ID, None, None],
        "span_id": [None, None, None],
        "is_error": [False, True, False],
        "is_event": [False, True, False],
        "tag": ["app", "app", "app"],
        "observed_time_unix_nano": [5, 0, 0],
        "job_id": ["job-1", None, None],
        "count": ["7", None, None],
        "ratio": [None, "0.5", None],
        "blob": [None, "AP8=", None],
        "host": ["row", "resource", "resource"],
        "absent": [None, None, None],
    }


def test_all_columns_come_when_none_are_named(rows: _core.Batch) -> None:
    names = rows.to_arrow().names

    assert names[:3] == ["time_unix_nano", "observed_time_unix_nano", "severity_number"]
    assert names[11:] == ["service.name", "host", "job_id", "count", "ratio", "blob", "event_type"]


def test_one_column_is_an_arrow_array(rows: _core.Batch) -> None:
    assert pa.array(rows.to_arrow(["job_id"])["job_id"]).to_pylist() == ["job-1", None, None]
    with pytest.raises(KeyError):
        rows.to_arrow(["job_id"])["body"]


def test_a_mask_selects_rows_and_null_is_false(rows: _core.Batch) -> None:
    body = pa.array(rows.to_arrow(["body"])["body"])

    assert bodies(rows.filter(pc.equal(body, "three"))) == ["three"]
    assert bodies(rows.filter(pa.array([True, None, True]))) == ["one", "three"]
    assert bodies(rows.filter(pa.chunked_array([[True], [False, True]]))) == ["one", "three"]
    assert bodies(rows.filter([False, False, True])) == ["three"]
    with pytest.raises(_core.CoreError, match="a mask for 3 rows is needed, not 1"):
        rows.filter([True])


def test_a_slice_is_clamped_and_keeps_columns_true(rows: _core.Batch) -> None:
    part = rows.slice(1, 99)

    assert bodies(part) == [{"nested": [1, True]}, "three"]
    assert pa.array(part.to_arrow(["event_type"])["event_type"]).to_pylist() == ["job_failed", None]
    assert len(rows.slice(5, 2)) == 0


def test_events_and_errors_are_selected_by_flag(rows: _core.Batch) -> None:
    assert bodies(rows.select_flag("event")) == bodies(rows.select_flag("error")) == [{"nested": [1, True]}]
    assert rows.slice(0, 1).select_flag("error") is None


def test_a_batch_keeps_only_the_resources_that_its_rows_use() -> None:
    batches = [log_batch(log("a")), log_batch(log("b"), resource={"service.name": "web"})]
    block = _core.encode_block(batches, "none", topic="logs", block_id="b")
    both = block.decode()

    assert (both.resource_count, both.slice(1, 2).resource_count) == (2, 1)
    assert both.slice(1, 2).to_block("none", topic="logs", block_id="b").services == ("web",)


def test_resource_attributes_are_added_and_present_ones_left_alone(rows: _core.Batch) -> None:
    enriched = rows.with_attributes({"host": "new", "gpu.count": 8})
    columns = pa.record_batch(enriched.to_arrow(["gpu.count", "host"])).to_pydict()

    assert columns == {"gpu.count": ["8", "8", "8"], "host": ["row", "resource", "resource"]}
    assert [row.attributes for row in logs_of(enriched)] == [row.attributes for row in logs_of(rows)]


def test_resource_attributes_may_differ_from_row_to_row(rows: _core.Batch) -> None:
    enriched = rows.with_attributes({"rack": pa.array(["r1", None, "r1"])})

    assert enriched.resource_count == 2
    assert pa.array(enriched.to_arrow(["rack"])["rack"]).to_pylist() == ["r1", None, "r1"]


def test_record_attributes_never_occur_twice(rows: _core.Batch) -> None:
    values = {"count": pa.array([1, 2, None]), "flag": True}

    kept = [plain_attributes(row.attributes) for row in logs_of(rows.with_attributes(values, target="record"))]
    assert [row.get("count") for row in kept] == [7, 2, None]
    changed = [plain_attributes(row.attributes) for row in logs_of(rows.with_attributes(values, target="record", overwrite=True))]
    assert [row.get("count") for row in changed] == [1, 2, None]
    assert list(changed[0]) == ["job_id", "count", "host", "flag"], "an overwritten attribute keeps its place"
    assert all(row["flag"] is True for row in changed)


def test_an_event_type_that_is_added_makes_the_row_an_event(rows: _core.Batch) -> None:
    enriched = rows.with_attributes({"event_type": "custom"}, target="record")

    assert enriched.event_count == 3


def test_arrays_keep_their_types_as_attributes(rows: _core.Batch) -> None:
    one = rows.slice(0, 1)
    values = {
        "int": pa.array([1], pa.uint8()),
        "float": pa.array([1.5], pa.float32()),
        "text": pa.array(["x"], pa.large_string()),
        "view": pa.array(["y"], pa.string_view()),
        "dict": pa.array(["z"]).dictionary_encode(),
        "bytes": pa.array([b"\x00"]),
        "list": pa.array([[1, None, 3]]),
        "map": pa.array([{"a": 1, "b": None}]),
    }
    row = logs_of(one.with_attributes(values, target="record"))[0]

    assert {key: value for key, value in plain_attributes(row.attributes).items() if key in values} == {
        "int": 1,
        "float": 1.5,
        "text": "x",
        "view": "y",
        "dict": "z",
        "bytes": b"\x00",
        "list": [1, None, 3],
        "map": {"a": 1},
    }


def test_attributes_that_cannot_be_set_are_refused_with_the_reason(rows: _core.Batch) -> None:
    with pytest.raises(_core.CoreError, match="a value for each of 3 rows is needed, not 1"):
        rows.with_attributes({"a": pa.array([1])})
    with pytest.raises(_core.CoreError, match="not dict") as caught:
        rows.with_attributes({"a": {}})
    assert caught.value.kind == "config_invalid"
    many = log_batch(*(log(str(index)) for index in range(1025)))
    with pytest.raises(_core.CoreError, match="at most 1024 resources"):
        many.with_attributes({"id": pa.array(range(1025))})


def test_removed_attributes_are_gone_from_rows_and_resources(rows: _core.Batch) -> None:
    redacted = rows.without_attributes(["host", "count", "absent"])

    assert pa.array(redacted.to_arrow(["host"])["host"]).to_pylist() == [None, None, None]
    assert plain_attributes(logs_of(redacted)[0].attributes) == {"job_id": "job-1"}


def test_columns_make_the_rows_that_they_came_from(rows: _core.Batch) -> None:
    names = [
        "time_unix_nano",
        "observed_time_unix_nano",
        "severity_number",
        "severity_text",
        "body",
        "trace_id",
        "span_id",
        "tag",
        "job_id",
    ]
    again = _core.Batch.from_arrow(pa.record_batch(rows.to_arrow(names)), resource={"service.name": "x"})

    assert pa.record_batch(again.to_arrow(names)) == pa.record_batch(rows.to_arrow(names))
    assert again.to_block("none", topic="logs", block_id="b").services == ("x",)


def test_columns_of_any_type_become_attributes_of_that_type() -> None:
    table = pa.table({"body": ["a", None], "n": [1, None], "at": pa.array([0, 1], pa.timestamp("s")), "nested": [{"x": [1]}, None]})
    batch = _core.Batch.from_arrow(table, tag="t", observed_time_unix_nano=9)

    first, second = logs_of(batch)
    assert plain_attributes(first.attributes) == {"n": 1, "at": "1970-01-01T00:00:00", "nested": {"x": [1]}}
    assert (plain(second.body), first.observed_time_unix_nano) == (None, 9)
    assert batch.to_block("none", topic="logs", block_id="b").tags == ("t",)


def test_metrics_refuse_attributes_of_their_own() -> None:
    with pytest.raises(_core.CoreError, match="use target="):
        _core.Batch.from_otlp(b"", signal="metrics").with_attributes({"a": 1}, target="record")


def test_spans_are_enriched_like_logs() -> None:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

    batch = span_batch(Span(name="a", start_time_unix_nano=3, trace_id=TRACE_ID, status=Status(code=Status.STATUS_CODE_ERROR)))
    columns = pa.record_batch(batch.with_attributes({"k": "v"}, target="record").to_arrow(["k", "is_error", "trace_id", "time_unix_nano"]))

    assert columns.to_pylist() == [{"k": "v", "is_error": True, "trace_id": TRACE_ID, "time_unix_nano": 3}]
