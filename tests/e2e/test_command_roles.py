"""Edge and central as a deployment runs them, OTLP in at the edge: each of RED, sampling and aggregation runs once on a record's way."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
import yaml
from fluent import sender
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.command import running, until
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_post import delta_sum, post, spans
from tests.support.otlp_receiving import METHODS
from tests.support.otlp_seen import plain
from tests.support.roles import KEY, EdgeAndCentral, Role

NORMAL = 200
FAILED_TRACES, SPANS_OF_A_FAILED_TRACE = 6, 4
SPANS = NORMAL + FAILED_TRACES * SPANS_OF_A_FAILED_TRACE
VALUES = list(range(1, 41))
LOGS = 12
THRESHOLD_OF_10_PERCENT = 0xE6660000000000
"""`ot=th:e666`: what the low 56 bits of a trace id must reach."""
_QUICK: dict[str, dict[str, float]] = {
    "red_metrics": {"interval_s": 0.1},
    "tail_sample": {"decision_wait_s": 1},
    "aggregate": {"interval_s": 0.3},
}


class Traffic:
    """What applications on the edge's machine send: the same for the same seed."""

    def __init__(self, seed: int = 5) -> None:
        chance = Random(seed)
        now = time.time_ns()
        self.normal = [spans([f"GET /{number % 3}"], chance, now_unix_nano=now) for number in range(NORMAL)]
        self.failed = [_failed_trace(chance, now) for _ in range(FAILED_TRACES)]
        self.sums = [delta_sum("jobs.done", [value], now_unix_nano=now, start_unix_nano=now - 10**9) for value in VALUES]

    @property
    def expected_normal(self) -> set[bytes]:
        """The trace ids that a consistent sampler at 10 % keeps."""
        ids = {span.trace_id for request in self.normal for span in spans_of([request])}
        return {trace_id for trace_id in ids if int.from_bytes(trace_id[-7:], "big") >= THRESHOLD_OF_10_PERCENT}

    @property
    def expected(self) -> Counter[bytes]:
        """How many spans of which trace a sampler keeps: all of those with an error, whole, and 10 % of the others."""
        return Counter(span.trace_id for span in spans_of(self.failed)) + Counter(self.expected_normal)

    def send(self, edge: Role, *, token: str = "") -> None:
        """Send all: spans of a trace in several requests, half of the traces by gRPC, logs by Forward."""
        self._send_apart([*self.normal, *self.sums], edge, token)
        # together and last: a trace that takes longer to come than a decision waits for it is decided by the part that is there
        self._send_apart([part for request in self.failed for part in _apart(request)], edge, token)
        client = sender.FluentSender("app", host="127.0.0.1", port=edge.forward_port, timeout=20.0)
        for number in range(LOGS):
            assert client.emit(None, {"message": f"record {number}", "level": "info"})
        client.close()

    def _send_apart(self, requests: list[Any], edge: Role, token: str) -> None:
        requests = Random(1).sample(requests, len(requests))
        by_grpc = [request for request in requests if isinstance(request, ExportTraceServiceRequest)][::2]
        for request in requests:
            if not any(request is other for other in by_grpc):
                assert post(edge.otlp_port, request, token=token) == 200
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with grpc.insecure_channel(f"127.0.0.1:{edge.grpc_port}") as channel:
            call = channel.unary_unary(METHODS["traces"])
            for request in by_grpc:
                assert call(request.SerializeToString(), metadata=metadata, timeout=20) == b""


def _failed_trace(chance: Random, now: int) -> Any:
    request = spans([f"step {number}" for number in range(SPANS_OF_A_FAILED_TRACE)], chance, now_unix_nano=now)
    rows = request.resource_spans[0].scope_spans[0].spans
    for row in rows:
        row.trace_id = rows[0].trace_id
        row.parent_span_id = b"" if row is rows[0] else rows[0].span_id
    rows[2].status.code = 2  # type: ignore[assignment]  # STATUS_CODE_ERROR
    return request


def _apart(request: Any) -> list[Any]:
    """Return a request for each span."""
    parts = []
    for index in range(len(request.resource_spans[0].scope_spans[0].spans)):
        part = type(request)()
        part.CopyFrom(request)
        kept = part.resource_spans[0].scope_spans[0].spans[index]
        copy = type(kept)()
        copy.CopyFrom(kept)
        del part.resource_spans[0].scope_spans[0].spans[:]
        part.resource_spans[0].scope_spans[0].spans.append(copy)
        parts.append(part)
    return parts


def spans_of(messages: Iterable[Any]) -> list[Any]:
    return [span for message in messages for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans]


def points_of(endpoint: OtlpEndpoint, name: str) -> list[Any]:
    """Return the number points of a metric, of all requests."""
    return [point for metric in endpoint.records("metrics") if metric.name == name for point in metric.sum.data_points]


def total(endpoint: OtlpEndpoint, name: str) -> int:
    return sum(point.as_int for point in points_of(endpoint, name))


def kept(endpoint: OtlpEndpoint) -> Counter[bytes]:
    return Counter(span.trace_id for span in endpoint.records("traces"))


def resources(endpoint: OtlpEndpoint, signal: str) -> list[dict[str, Any]]:
    field = {"logs": "resource_logs", "traces": "resource_spans", "metrics": "resource_metrics"}[signal]
    return [
        {pair.key: plain(pair.value) for pair in resource.resource.attributes}
        for message in endpoint.messages(signal)
        for resource in getattr(message, field)
    ]


async def everything_arrived(endpoint: OtlpEndpoint, traffic: Traffic) -> None:
    """Wait for what must come, and for as long again as a decision takes: what must not come would come then."""
    await endpoint.wait_until(lambda: kept(endpoint) >= traffic.expected and total(endpoint, "jobs.done") >= sum(VALUES), 40)
    await endpoint.wait_until(lambda: total(endpoint, "traces.span.metrics.calls") >= SPANS, 40)
    await asyncio.sleep(1.5)


def assert_sampled_and_counted_once(endpoint: OtlpEndpoint, traffic: Traffic) -> None:
    assert endpoint.violations == []
    assert kept(endpoint) == traffic.expected, "not each trace with an error whole, and of the others those of a consistent 10 %"
    for span in endpoint.records("traces"):
        if span.trace_id in traffic.expected_normal:
            assert "ot=th:e666" in span.trace_state, "a kept span does not say with which chance it was kept"
    assert total(endpoint, "jobs.done") == sum(VALUES), "a delta was lost or doubled"
    assert total(endpoint, "traces.span.metrics.calls") == SPANS, "RED metrics do not count each span once, sampled or not"
    assert len(points_of(endpoint, "jobs.done")) < len(VALUES) / 2, "nothing was merged"


async def test_by_central_whole_traces_are_sampled_there_and_metrics_merged_at_the_edge(tmp_path: Path) -> None:
    both, traffic = EdgeAndCentral.of(tmp_path), Traffic()
    async with OtlpEndpoint() as sink:
        with ExitStack() as stack:
            central = stack.enter_context(both.central.running(**both.for_central, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url))
            without = ("tail_sample", "red_metrics")
            edge = stack.enter_context(both.edge.running(leave_out=without, **both.for_edge))
            await asyncio.to_thread(traffic.send, edge)
            await everything_arrived(sink, traffic)
            await sink.wait_records("logs", LOGS)
            assert_sampled_and_counted_once(sink, traffic)
            assert len(sink.records("logs")) == LOGS
            for signal in ("traces", "logs"):
                assert {resource["machine_id"] for resource in resources(sink, signal)} == {"gpu-edge"}
            merged = edge.metric("deriver_output_records_total", component="aggregate", topic="metrics")
            assert edge.metric("group_records_total", group="aggregate", topic="metrics.in", outcome="acked") == len(VALUES)
            assert edge.metric("group_records_total", group="forward/central", topic="traces", outcome="acked") == SPANS
            assert edge.metric("deriver_commits_total", component="tail_sample") == 0
            counted = central.metric("deriver_output_records_total", component="red_metrics", topic="metrics.in")
            assert central.metric("group_records_total", group="red_metrics", topic="traces.in", outcome="acked") == SPANS
            assert central.metric("group_records_total", group="tail_sample", topic="traces.in", outcome="appended") == SPANS
            assert central.metric("group_records_total", group="aggregate", topic="metrics.in", outcome="appended") == counted, (
                "what the edge had merged was merged again"
            )
            arrived = central.metric("receiver_records_total", component="forward/secure", outcome="appended")
            assert arrived == SPANS + LOGS + merged
            for role in (edge, central):
                assert role.metric("dead_records") == 0
                role.assert_balanced()


async def test_straight_from_the_edge_traces_and_metrics_go_to_dash0_and_logs_to_central(tmp_path: Path) -> None:
    both, traffic = EdgeAndCentral.of(tmp_path), Traffic()
    async with OtlpEndpoint(token="dash0-token", required_headers={"dash0-dataset": "staging"}) as dash0, OtlpEndpoint() as sink:
        with ExitStack() as stack:
            central = stack.enter_context(both.central.running(**both.for_central, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url))
            variables = {**both.for_edge, "DASH0_AUTH_TOKEN": "dash0-token", "DASH0_DATASET": "staging", "DASH0_ENDPOINT": dash0.url}
            edge = stack.enter_context(both.edge.running(**variables))
            await asyncio.to_thread(traffic.send, edge)
            await everything_arrived(dash0, traffic)
            await sink.wait_records("logs", LOGS)
            assert_sampled_and_counted_once(dash0, traffic)
            assert dash0.records("logs") == []
            assert sink.records("traces") == []
            assert central.metric("receiver_records_total", component="forward/secure", outcome="received") == LOGS
            assert edge.metric("group_records_total", group="tail_sample", topic="traces.in", outcome="appended") == SPANS
            for role in (edge, central):
                role.assert_balanced()


@pytest.mark.parametrize("way", ["forward", "otlp_http", "otlp_grpc"])
@pytest.mark.parametrize("at_the_edge", [("red_metrics", "tail_sample", "aggregate"), ("red_metrics", "aggregate"), ("tail_sample",)])
async def test_what_an_edge_has_done_central_does_not_do_again(at_the_edge: tuple[str, ...], way: str, tmp_path: Path) -> None:
    """An edge that does it and sends the outcome by central: the blocks' flags, or a line beside a request, are all that tells central."""
    both, traffic = EdgeAndCentral.of(tmp_path), Traffic()
    at_edge = Role.of("edge", tmp_path)
    by_forward = {"endpoint": f"127.0.0.1:{both.secure_port}", "shared_key": KEY, "tls": {"ca_file": str(tmp_path / "ca.pem")}}
    by_otlp = {"endpoint": f"http://127.0.0.1:{both.central.otlp_port if way == 'otlp_http' else both.central.grpc_port}"}
    file = tmp_path / "edge.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "machine_id": "gpu-edge",
                "http": {"listen": f"127.0.0.1:{at_edge.http_port}"},
                "receivers": {
                    "forward": {"listen": f"127.0.0.1:{at_edge.forward_port}"},
                    "otlp_http": {"listen": f"127.0.0.1:{at_edge.otlp_port}"},
                    "otlp_grpc": {"listen": f"127.0.0.1:{at_edge.grpc_port}"},
                },
                "processors": {name: settings for name, settings in _QUICK.items() if name in at_the_edge},
                "exporters": {f"{way}/central": by_forward if way == "forward" else by_otlp},
            }
        )
    )
    async with OtlpEndpoint() as sink:
        with ExitStack() as stack:
            central = stack.enter_context(both.central.running(**both.for_central, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url))
            stack.enter_context(running("run", str(file), "--data-dir", str(at_edge.directory)))
            await asyncio.to_thread(traffic.send, at_edge)
            if at_the_edge == ("tail_sample",):  # what was sampled comes too late for RED: its counts would be wrong
                await sink.wait_until(lambda: kept(sink) >= traffic.expected and total(sink, "jobs.done") >= sum(VALUES), 40)
                await asyncio.sleep(1.5)
                assert kept(sink) == traffic.expected
                assert central.metric("red_spans_total", outcome="counted") == 0, "RED counted what had been sampled"
            else:
                await everything_arrived(sink, traffic)
                assert_sampled_and_counted_once(sink, traffic)
                assert at_edge.metric("red_spans_total", outcome="counted") == SPANS
                assert central.metric("red_spans_total", outcome="counted") == 0, "RED ran twice"
                assert central.metric("aggregate_points_total", direction="in") == 0, "metrics were merged twice"
            there = central.metric("group_records_total", group="tail_sample", topic="traces.in", outcome="appended")
            assert there == (0 if "tail_sample" in at_the_edge else SPANS)
            central.assert_balanced()
            at_edge.assert_balanced()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_an_edge_whose_otlp_endpoint_is_a_central_leaves_it_nothing_to_do_again(protocol: str, tmp_path: Path) -> None:
    both, traffic = EdgeAndCentral.of(tmp_path), Traffic()
    port = both.central.otlp_port if protocol == "http/protobuf" else both.central.grpc_port
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    async with OtlpEndpoint() as sink:
        with ExitStack() as stack:
            central = stack.enter_context(both.central.running(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url))
            edge = stack.enter_context(both.edge.running(**variables))
            await asyncio.to_thread(traffic.send, edge)
            await everything_arrived(sink, traffic)
            await sink.wait_records("logs", LOGS)
            assert_sampled_and_counted_once(sink, traffic)
            assert len(sink.records("logs")) == LOGS
            assert edge.metric("red_spans_total", outcome="counted") == SPANS
            assert central.metric("red_spans_total") == 0, "RED saw spans that were counted and decided"
            assert central.metric("group_records_total", group="tail_sample", outcome="appended") == 0, "traces were sampled twice"
            assert central.metric("group_records_total", group="aggregate", outcome="appended") == 0, "metrics were merged twice"
            receiver = "otlp_http" if protocol == "http/protobuf" else "otlp_grpc"
            assert central.metric("receiver_records_total", component=receiver, outcome="appended") > traffic.expected.total()
            for role in (edge, central):
                role.assert_balanced()


async def test_without_a_shared_key_traces_and_metrics_reach_central_by_otlp_with_the_token(tmp_path: Path) -> None:
    both, traffic = EdgeAndCentral.of(tmp_path), Traffic()
    async with OtlpEndpoint() as sink:
        with ExitStack() as stack:
            central = both.central
            stack.enter_context(central.running(OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, EMP_OTLP_TOKEN="token"))
            variables = {
                "FLUENTD_HOST": "127.0.0.1",
                "FLUENTD_PORT": str(central.forward_port),
                "EMP_CENTRAL_OTLP_ENDPOINT": f"http://127.0.0.1:{central.otlp_port}",
                "EMP_OTLP_TOKEN": "token",
            }
            without = ("tail_sample", "red_metrics")
            edge = stack.enter_context(both.edge.running(leave_out=without, **variables))
            assert post(edge.otlp_port, traffic.normal[0]) == 401, "the edge took traces from somebody without the token"
            await asyncio.to_thread(lambda: traffic.send(edge, token="token"))
            await everything_arrived(sink, traffic)
            await sink.wait_records("logs", LOGS)
            assert_sampled_and_counted_once(sink, traffic)
            assert central.metric("receiver_records_total", component="otlp_http", outcome="appended") > SPANS
            counted = central.metric("deriver_output_records_total", component="red_metrics", topic="metrics.in")
            assert central.metric("group_records_total", group="aggregate", topic="metrics.in", outcome="appended") == counted, (
                "what the edge had merged was merged again"
            )
            assert central.metric("receiver_records_total", component="forward", outcome="appended") == LOGS


@pytest.mark.parametrize("role", ["edge", "central"])
def test_a_role_without_any_setting_takes_all_three_signals_and_keeps_them_in_files(role: str, tmp_path: Path) -> None:
    process, traffic = Role.of(role, tmp_path), Traffic()
    with process.running():
        traffic.send(process)
        for topic, least in (("traces", traffic.expected.total()), ("logs", LOGS), ("metrics", 2)):
            in_files = {"group": "file", "topic": topic, "outcome": "acked"}
            until(lambda: process.metric("group_records_total", **in_files) >= least, f"{topic} in files")  # noqa: B023
        for receiver in ("otlp_http", "otlp_grpc", "forward"):
            assert process.metric("receiver_records_total", component=receiver, outcome="appended") > 0
        process.assert_balanced()
