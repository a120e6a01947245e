"""The benchmarks' OTLP load and its proof: requests are what the official classes read, and the sink notices what is wrong with a run."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.otlp_data import OtlpData, Signal, build
from bench.otlp_load import OtlpLoad, OtlpLoadGenerator
from bench.otlp_proof import Sampled, rows_of, verify_otlp
from bench.proof import Arrived, Verdict
from bench.sink import Sink

SIGNALS: tuple[Signal, ...] = ("logs", "traces", "metrics")


def arrived(bodies: list[bytes]) -> Arrived:
    return Arrived(bodies, sum(map(len, bodies)), [])


@pytest.mark.parametrize("signal", SIGNALS)
def test_what_is_sent_reads_back_with_the_official_classes_and_is_right(signal: Signal) -> None:
    data = OtlpData(signal, 1_000, 250)
    built = build(data)
    assert len(built.requests) == 4
    assert len(set(built.ids)) == 1_000
    assert sum(1 for body in built.requests for _ in rows_of(signal, body)) == 1_000
    verdict = verify_otlp([data], arrived(built.requests))
    assert verdict.right, verdict
    assert (verdict.records, verdict.requests) == (1_000, 4)


def test_two_processes_build_the_same_from_one_recipe_and_another_seed_gives_other_rows() -> None:
    data = OtlpData("logs", 100, 50)
    assert build(data).requests == build(data).requests
    assert not set(build(data).ids) & set(build(OtlpData("logs", 100, 50)).ids)


def test_sizes_are_those_of_an_sdk() -> None:
    logs, spans = build(OtlpData("logs", 1_000, 1_000)), build(OtlpData("traces", 500, 500))
    assert 360_000 < len(logs.requests[0]) < 400_000
    assert 88_000 < len(spans.requests[0]) < 106_000


def test_the_spans_of_a_trace_lie_in_several_requests() -> None:
    built = build(OtlpData("traces", 10_000, 500))
    requests_of: dict[bytes, set[int]] = {}
    for number, body in enumerate(built.requests):
        for _, _, span in rows_of("traces", body):
            requests_of.setdefault(span.trace_id, set()).add(number)
    assert len(requests_of) == 2_000
    assert sum(map(len, requests_of.values())) / 2_000 > 3.5
    assert {len(spans) for spans in requests_of.values()} >= {3, 4, 5}


def changed(signal: Signal, body: bytes) -> bytes:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request: Any = {"logs": ExportLogsServiceRequest, "traces": ExportTraceServiceRequest, "metrics": ExportMetricsServiceRequest}[
        signal
    ].FromString(body)
    if signal == "logs":
        for record in request.resource_logs[0].scope_logs[0].log_records:
            record.flags = 0
    elif signal == "traces":
        for span in request.resource_spans[0].scope_spans[0].spans:
            span.kind = 5
    else:
        for metric in request.resource_metrics[0].scope_metrics[0].metrics:
            for point in getattr(metric, metric.WhichOneof("data")).data_points:
                point.start_time_unix_nano = 0
    return bytes(request.SerializeToString())


@pytest.mark.parametrize("signal", SIGNALS)
def test_lost_repeated_foreign_and_changed_rows_make_a_run_void(signal: Signal) -> None:
    data = OtlpData(signal, 300, 100)
    requests, other = build(data).requests, build(OtlpData(signal, 100, 100)).requests

    def verdict(bodies: list[bytes]) -> Verdict:
        found = verify_otlp([data], arrived(bodies))
        assert not found.right
        return found

    assert verdict(requests[:2]).lost == 100
    assert verdict([*requests, requests[0]]).repeated == 100
    assert verdict(requests + other).foreign == 100
    assert verdict([changed(signal, body) for body in requests]).differences


def sampler(data: OtlpData, keep: float, errors: bool = True) -> list[bytes]:
    """What a sampler would send: its requests without the traces that it left out."""
    built = build(data)
    kept = [trace for trace in Counter(built.trace_of) if (errors and trace in built.error_traces) or trace % 100 < keep * 100]
    left_out = {one for one, trace in zip(built.ids, built.trace_of, strict=True) if trace not in set(kept)}
    bodies = []
    for body in built.requests:
        request = ExportTraceServiceRequest.FromString(body)
        spans = request.resource_spans[0].scope_spans[0].spans
        keeping = [span for span in spans if span.attributes[0].value.string_value[4:].encode() not in left_out]
        del spans[:]
        spans.extend(keeping)
        bodies.append(request.SerializeToString())
    return bodies


def test_a_sampler_is_right_that_keeps_whole_traces_each_error_and_as_many_others_as_it_should() -> None:
    data = OtlpData("traces", 10_000, 500, error_share=0.05)
    verdict = verify_otlp([data], arrived(sampler(data, 0.1)), Sampled(0.1))
    assert verdict.right, verdict
    assert verify_otlp([data], arrived(sampler(data, 0.3)), Sampled(0.1)).differences
    assert verify_otlp([data], arrived(sampler(data, 0.1, errors=False)), Sampled(0.1)).lost


def test_a_sampler_that_sends_part_of_a_trace_is_noticed() -> None:
    data = OtlpData("traces", 10_000, 500)
    verdict = verify_otlp([data], arrived(sampler(data, 0.1)[:-3]), Sampled(0.1))
    assert any("without some of their spans" in text for text in verdict.differences)


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    sink = Sink(tmp_path_factory.mktemp("bench") / "pool")
    yield sink
    sink.close()


@pytest.fixture(scope="module")
def generator() -> Iterator[OtlpLoadGenerator]:
    generator = OtlpLoadGenerator()
    yield generator
    generator.close()


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(("protocol", "compression"), [("http", "none"), ("http", "gzip"), ("grpc", "none")])
def test_the_generator_and_the_sink_agree_over_both_protocols(
    sink: Sink, generator: OtlpLoadGenerator, signal: Signal, protocol: str, compression: str
) -> None:
    sink.reset()
    load = OtlpLoad(OtlpData(signal, 2_000, 250), protocol, compression)  # type: ignore[arg-type]
    generator.prepare(load)
    generator.start(sink.address.http_port if protocol == "http" else sink.address.grpc_port)
    report = generator.wait(30)
    assert (report.segments, len(report.ack_latency_s), report.refused) == (8, 8, 0)
    while sink.count() < 2_000:
        pass  # the body is filed just after the answer
    verdict = sink.verify_otlp([load.data])
    assert verdict.right, verdict


def test_the_sink_inflates_gzip(sink: Sink, tmp_path: Path) -> None:
    import http.client

    data = OtlpData("logs", 10, 10)
    sink.reset()
    connection = http.client.HTTPConnection("127.0.0.1", sink.port)
    connection.request("POST", "/v1/logs", gzip.compress(build(data).requests[0]), {"Content-Encoding": "gzip"})
    assert connection.getresponse().status == 200
    while sink.count() < 10:
        pass
    connection.close()
    assert sink.verify_otlp([data]).right
