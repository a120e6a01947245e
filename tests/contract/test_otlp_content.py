"""What both OTLP exporters put on the wire: every field of what came in, read by the official classes, and Dash0's limits kept."""

from __future__ import annotations

import time
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from emp_pipe._core import Batch, Block
from emp_pipe.component import Parcel
from emp_pipe.exporters.otlp_grpc import OtlpGrpcConfig
from emp_pipe.exporters.otlp_http import OtlpHttpConfig
from emp_pipe.log.protocol import DeadReason
from tests.support.delivering import delivering
from tests.support.otlp_destinations import destination_of
from tests.support.otlp_rows import attributes, log, log_batch, metric_batch, plain_attributes, span_batch
from tests.support.otlp_samples import METRIC_KINDS, rich_logs, rich_metric, rich_spans

SAMPLES: dict[str, tuple[Any, Any]] = {
    "logs": ("logs", rich_logs()),
    "traces": ("traces", rich_spans()),
    **{kind: ("metrics", rich_metric(kind)) for kind in METRIC_KINDS},
}
HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize("sample", list(SAMPLES))
@pytest.mark.parametrize(
    ("protocol", "compression"), [("http", "none"), ("http", "gzip"), ("http", "zstd"), ("grpc", "none"), ("grpc", "gzip")]
)
async def test_every_field_arrives(protocol: Any, compression: str, sample: str) -> None:
    signal, sent = SAMPLES[sample]
    batch = Batch.from_otlp(sent.SerializeToString(), signal=signal)
    async with destination_of(protocol) as destination:
        exporter = destination.exporter(compression=compression)
        await exporter.open()
        block = batch.to_block(compression if protocol == "http" else "zstd", topic=signal, block_id="b")  # type: ignore[arg-type]
        await exporter.send(Parcel(block, 1, 1e9))
        await exporter.close(0.0)
        assert destination.endpoint.messages(signal) == [sent]


# --- Dash0 --------------------------------------------------------------------------------------------


def dash0_blocks(now: int) -> list[Block]:
    """One block of each signal with rows that keep Dash0's limits, and rows past each of them."""
    old, ahead = now - 7 * HOUR_NS, now + 96 * HOUR_NS
    logs = [
        log("fresh", time=now),
        log("old", time=old),
        log("ahead", time=ahead),
        log("ä" * 5000, time=now),
        log("chatty", time=now, attrs={f"k{index}": "v" for index in range(40)}),
        log("wordy", time=now, attrs={"k" * 300: "x" * 5000}),
    ]

    def span(name: str, number: int, **fields: Any) -> Span:
        ids = {"trace_id": fields.pop("trace_id", number.to_bytes(16, "big")), "span_id": number.to_bytes(8, "big")}
        return Span(name=name, **{"start_time_unix_nano": now, **ids, **fields})

    event = Span.Event(name="e", time_unix_nano=now, attributes=attributes({"stack": "x" * 5000}))
    spans = [
        span("fresh", 1),
        span("old", 2, start_time_unix_nano=old),
        span("chatty", 3, attributes=attributes({f"k{index}": "v" for index in range(50)})),
        span("eventful", 4, events=[event] * 20),
        *(span("crowd", 100 + index, trace_id=bytes([9] * 16)) for index in range(2010)),
    ]
    metric = Metric(name="m")
    metric.gauge.data_points.add(time_unix_nano=old, as_double=1.0, attributes=attributes({"k": "v"}))
    for end in ("a", "b"):
        metric.gauge.data_points.add(time_unix_nano=now, as_double=1.0, attributes=attributes({"k": "x" * 5000 + end}))
    batches = {"logs": log_batch(*logs), "traces": span_batch(*spans), "metrics": metric_batch(metric)}
    return [batch.to_block("gzip", topic=signal, block_id=signal) for signal, batch in batches.items()]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_the_dash0_preset_keeps_dash0s_documented_limits_for_every_signal_and_counts_what_it_changed(protocol: Any) -> None:
    name = "Dash0-Dataset" if protocol == "http" else "dash0-dataset"
    async with destination_of(protocol, token="t", required_headers={name: "prod-eu"}) as destination:
        exporter = destination.exporter(preset="dash0", token="t", dataset="prod-eu")
        async with delivering(exporter) as subject:
            await subject.append(dash0_blocks(time.time_ns()))
            await subject.until_done()
            letters, books = await subject.dead(), await subject.books()
        logs = {row.body.string_value[:6]: row for row in destination.endpoint.records("logs")}
        spans = destination.endpoint.records("traces")
        (metric,) = destination.endpoint.records("metrics")
    dead = {(letter.reason, letter.records) for letter in letters}
    assert dead == {(DeadReason.EXPIRED, 2), (DeadReason.EXPIRED, 1), (DeadReason.TRACE_TOO_LARGE, 10)}
    assert (books.appended, books.dead, books.acked) == (6 + 2014 + 3, 13, 4 + 2003 + 3)

    assert set(logs) == {"fresh", "ä" * 6, "chatty", "wordy"}
    assert logs["ä" * 6].body.string_value.endswith("…")
    assert len(logs["ä" * 6].body.string_value.encode()) <= 4096
    assert (len(logs["chatty"].attributes), logs["chatty"].dropped_attributes_count) == (16, 24)
    ((key, value),) = plain_attributes(logs["wordy"].attributes).items()
    assert (len(key.encode()), len(value.encode())) == (128, 2048)

    by_name = {span.name: span for span in spans}
    assert set(by_name) == {"fresh", "chatty", "eventful", "crowd"}
    assert sum(span.name == "crowd" for span in spans) == 2000
    assert (len(by_name["chatty"].attributes), by_name["chatty"].dropped_attributes_count) == (32, 18)
    assert (len(by_name["eventful"].events), by_name["eventful"].dropped_events_count) == (8, 12)
    assert all(len(pair.value.string_value.encode()) <= 2048 for event in by_name["eventful"].events for pair in event.attributes)

    values = [pair.value.string_value for point in metric.gauge.data_points for pair in point.attributes]
    assert len(set(values)) == 3, "a point's stream became another's"
    assert all(len(value.encode()) <= 2048 for value in values)

    limits = {"max_age_s", "max_ahead_s", "max_body_bytes", "max_log_attributes", "max_span_attributes", "max_span_events"}
    limits |= {"max_trace_spans", "max_key_bytes", "max_value_bytes"}
    counted = {limit: subject.metric("exporter_truncated_values_total", limit=limit) for limit in limits}
    assert {limit for limit, count in counted.items() if count} == limits, counted
    assert counted["max_trace_spans"] == 10


@pytest.mark.parametrize("config", [OtlpHttpConfig, OtlpGrpcConfig])
def test_the_dash0_preset_names_the_address_of_the_region(config: Any) -> None:
    from emp_pipe.component import Signal

    port = ":4317" if config is OtlpGrpcConfig else "/v1/logs"
    assert config(preset="dash0", token="t").address(Signal.LOGS) == f"https://ingress.eu-west-1.aws.dash0.com{port}"
    assert config(preset="dash0", token="t", region="us-west-2").address(Signal.LOGS) == f"https://ingress.us-west-2.aws.dash0.com{port}"
    own = {"preset": "dash0", "token": "t", "endpoint": "https://otlp.example"}
    assert str(config(**own).address(Signal.LOGS)).startswith("https://otlp.example")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_refused_key_says_which_variables_dash0s_key_comes_from(protocol: Any) -> None:
    async with (
        destination_of(protocol, token="another") as destination,
        delivering(destination.exporter(preset="dash0", token="t")) as subject,
    ):
        await subject.append([log_batch(log("x", time=time.time_ns())).to_block("gzip", topic="logs", block_id="b")])
        await subject.until(lambda: bool(subject.loop.status().error))
        assert "set DASH0_AUTH_TOKEN (and DASH0_DATASET), or `token`" in subject.loop.status().error
