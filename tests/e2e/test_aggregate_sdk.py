"""OpenTelemetry's SDK for Python in front of the aggregator: what its instruments counted is what comes out, in both temporalities."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, UpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource

from tests.e2e.test_command_aggregate import MetricsBench, points_in
from tests.support.command import running


@pytest.mark.parametrize("temporality", [AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE], ids=["delta", "cumulative"])
@pytest.mark.parametrize("kind", ["explicit", "exponential"])
def test_what_the_sdk_counted_comes_out_in_one_window(tmp_path: Path, temporality: AggregationTemporality, kind: str) -> None:
    bench = MetricsBench(tmp_path)
    bench.processors("aggregate: ")
    aggregation: Any = ExplicitBucketHistogramAggregation() if kind == "explicit" else ExponentialBucketHistogramAggregation()
    with running(*bench.arguments) as process:
        exporter = OTLPMetricExporter(
            endpoint=f"http://127.0.0.1:{bench.otlp_port}/v1/metrics",
            preferred_temporality=dict.fromkeys((Counter, Histogram, UpDownCounter), temporality),
            preferred_aggregation={Histogram: aggregation},
        )
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
        provider = MeterProvider(metric_readers=[reader], resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
        meter = provider.get_meter("test")
        counter, gauge = meter.create_counter("orders"), meter.create_gauge("queue")
        duration, balance = meter.create_histogram("duration"), meter.create_up_down_counter("balance")
        for turn in range(3):
            counter.add(turn + 1, {"pay": "card"})
            counter.add(10)
            gauge.set(turn)
            balance.add(-1)
            for value in (0.5, 3.0 * 10**turn):
                duration.record(value)
            assert provider.force_flush()
        provider.shutdown()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    orders = {tuple(one.labels.items()): one.fields["asInt"] for one in points_in(bench.data_dir, "orders")}
    assert orders == {(("pay", "card"),): "6", (): "30"}
    assert [one.fields["asInt"] for one in points_in(bench.data_dir, "queue")] == ["2"]
    assert [one.fields["asInt"] for one in points_in(bench.data_dir, "balance")] == ["-3"]
    (found,) = points_in(bench.data_dir, "duration")
    assert found.kind == ("histogram" if kind == "explicit" else "exponentialHistogram")
    assert (found.fields["count"], found.fields["sum"], found.fields["min"], found.fields["max"]) == ("6", 334.5, 0.5, 300)
    buckets = found.fields if kind == "explicit" else found.fields["positive"]
    assert sum(int(count) for count in buckets["bucketCounts"]) == 6
