"""OpenTelemetry's SDK for Python against the running command: every item arrives once, as it was sent; a busy server is waited for."""

from __future__ import annotations

import asyncio
import os
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.trace.export import SpanExportResult

from tests.support.command import free_port, running, until
from tests.support.command_bench import Bench
from tests.support.otlp_endpoint import Answer, OtlpEndpoint
from tests.support.otlp_seen import mapping
from tests.support.otlp_strict import SIGNALS as SIGNAL_TYPES
from tests.support.otlp_strict import Received
from tests.support.sdk_telemetry import COMPRESSIONS, Telemetry, exporter, make
from tests.support.telemetry import log_record, log_request

SIGNALS = ("logs", "traces", "metrics")
TRANSPORTS = tuple(COMPRESSIONS)
SUCCESS = {"logs": LogRecordExportResult.SUCCESS, "traces": SpanExportResult.SUCCESS, "metrics": MetricExportResult.SUCCESS}
_WAYS = {
    "logs": ("resource_logs", "scope_logs", "log_records"),
    "traces": ("resource_spans", "scope_spans", "spans"),
    "metrics": ("resource_metrics", "scope_metrics", "metrics"),
}


@dataclass(frozen=True)
class Item:
    """One item with all that is said about it; comparable byte for byte, whatever request it came in."""

    resource: tuple[tuple[str, str], ...]
    resource_schema: str
    scope: bytes
    scope_schema: str
    row: bytes


def items(messages: list[Any], signal: str) -> list[Item]:
    """Return the items of requests, in an order that does not depend on the way."""
    found = []
    of_resource, of_scope, rows = _WAYS[signal]
    for message in messages:
        for resource in getattr(message, of_resource):
            said = tuple(sorted((key, repr(value)) for key, value in mapping(resource.resource.attributes).items()))
            for scope in getattr(resource, of_scope):
                encoded_scope = scope.scope.SerializeToString(deterministic=True)
                for row in getattr(scope, rows):
                    encoded = row.SerializeToString(deterministic=True)
                    found.append(Item(said, resource.schema_url, encoded_scope, scope.schema_url, encoded))
    return sorted(found, key=lambda item: item.row)


def messages(received: list[Received], signal: str) -> list[Any]:
    return [request.message for request in received if request.signal == signal and request.status == 200]


class Pipe(Bench):
    """A running command that takes OTLP both ways and passes it on to a strict endpoint, with nothing in between."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.grpc_port, self.otlp_http_port = free_port(), free_port()

    def pass_on_to(self, endpoint: str, buffer: str = "sqlite", guarded: str = "") -> None:
        ports = {"otlp_grpc": self.grpc_port, "otlp_http": self.otlp_http_port}
        receivers = "{" + ", ".join(f'{name}: {{listen: "127.0.0.1:{port}"{guarded}}}' for name, port in ports.items()) + "}"
        self.write(receivers=receivers, exporters=f'{{otlp_http: {{endpoint: "{endpoint}"}}}}', buffer=buffer)

    def refused(self, transport: str, signal: str) -> float:
        """Return how many requests were told to come again."""
        receiver = "otlp_grpc" if transport == "grpc" else "otlp_http"
        return self.metric("emp_pipe_otlp_received_requests_total", component=receiver, signal=signal, code="UNAVAILABLE")

    def exporter(self, transport: str, signal: str, compression: str = "none", **more: Any) -> Any:
        port = self.grpc_port if transport == "grpc" else self.otlp_http_port
        return exporter(transport, signal, port, compression, **more)


@asynccontextmanager
async def piped(directory: Path, buffer: str = "sqlite", guarded: str = "") -> AsyncIterator[tuple[Pipe, OtlpEndpoint]]:
    pipe = Pipe(directory)
    async with OtlpEndpoint() as endpoint:
        pipe.pass_on_to(endpoint.url, buffer, guarded)
        command = running(*pipe.arguments)
        await asyncio.to_thread(command.__enter__)
        try:
            yield pipe, endpoint
        finally:
            await asyncio.to_thread(command.__exit__, None, None, None)


@pytest.fixture(scope="module")
def telemetry() -> Telemetry:
    return make()


WAYS = [(transport, compression) for transport in TRANSPORTS for compression in COMPRESSIONS[transport]]


@pytest.mark.parametrize(("transport", "compression"), WAYS, ids=[f"{transport}-{compression}" for transport, compression in WAYS])
async def test_every_item_of_the_sdk_arrives_once_as_it_was_sent(
    transport: str, compression: str, telemetry: Telemetry, tmp_path: Path
) -> None:
    async with piped(tmp_path) as (pipe, endpoint):
        for signal in SIGNALS:
            sender = pipe.exporter(transport, signal, compression)
            assert await asyncio.to_thread(sender.export, getattr(telemetry, signal)) == SUCCESS[signal]
            sender.shutdown()
        expected = {signal: items([telemetry.expected(signal)], signal) for signal in SIGNALS}
        for signal in SIGNALS:
            await endpoint.wait_records(signal, len(expected[signal]))
            assert items(messages(endpoint.received, signal), signal) == expected[signal]
        assert endpoint.violations == []


async def test_a_request_of_two_applications_keeps_their_resources_apart(telemetry: Telemetry, tmp_path: Path) -> None:
    async with piped(tmp_path) as (pipe, endpoint):
        sender = pipe.exporter("http/protobuf", "traces")
        await asyncio.to_thread(sender.export, telemetry.traces)
        await endpoint.wait_records("traces", 6)
        (message,) = messages(endpoint.received, "traces")
    by_service = {mapping(each.resource.attributes)["service.name"]: each for each in message.resource_spans}
    assert by_service.keys() == {"api", "renderer"}
    assert {span.name for scope in by_service["api"].scope_spans for span in scope.spans} == {"submit"}


def test_what_the_sdk_can_express_is_in_what_arrives(telemetry: Telemetry) -> None:
    """That the comparison above compares something: ids, parents, links, events, status, exemplars, every kind of metric."""
    spans, points, records = (list(SIGNAL_TYPES[signal].rows(telemetry.expected(signal))) for signal in ("traces", "metrics", "logs"))
    assert [len(rows) for rows in (spans, points, records)] == [6, 5, 8]
    assert sum(bool(span.parent_span_id) for span in spans) == 3
    assert sum(len(span.links) for span in spans) == 2
    assert {event.name for span in spans for event in span.events} == {"loaded", "exception"}
    assert [span.status.message for span in spans if span.status.code == 2] == ["out of memory"]
    assert {metric.WhichOneof("data") for metric in points} == {"gauge", "sum", "histogram", "exponential_histogram"}
    assert any(point.exemplars for metric in points for point in metric.sum.data_points)
    assert sum(bool(record.trace_id) for record in records) == 7


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_sdk_gets_in_by_tls_and_token_and_without_the_token_not(
    transport: str, telemetry: Telemetry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)  # `requests` lets them win over what its session is given
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    tls = f'tls: {{cert_file: "{tmp_path}/cert.pem", key_file: "{tmp_path}/key.pem"}}'
    async with piped(tmp_path, guarded=f', token: "a secret", {tls}') as (pipe, endpoint):
        for signal in SIGNALS:
            for secret, gets_in in (("a secret", True), ("a guess", False)):
                sender = pipe.exporter(transport, signal, ca_file=tmp_path / "ca.pem", headers={"authorization": f"Bearer {secret}"})
                assert (await asyncio.to_thread(sender.export, getattr(telemetry, signal)) == SUCCESS[signal]) is gets_in
                sender.shutdown()
            await endpoint.wait_records(signal, len(items([telemetry.expected(signal)], signal)))
        assert [len(messages(endpoint.received, signal)) for signal in SIGNALS] == [1, 1, 1]


def full(pipe: Pipe) -> bool:
    """Put something into the buffer; whether it takes no more."""
    request = log_request([log_record(os.urandom(8192).hex())]).SerializeToString()
    url, headers = f"http://127.0.0.1:{pipe.otlp_http_port}/v1/logs", {"Content-Type": "application/x-protobuf"}
    try:
        urllib.request.urlopen(urllib.request.Request(url, request, headers), timeout=20).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 503
    return False


def those_of(endpoint: OtlpEndpoint, signal: str, expected: list[Item]) -> list[Item]:
    """Return which of the expected items have arrived, as often as they did."""
    return [item for item in items(messages(endpoint.received, signal), signal) if item in expected]


def all_are_there(endpoint: OtlpEndpoint, signal: str, expected: list[Item]) -> bool:
    return len(those_of(endpoint, signal, expected)) >= len(expected)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_full_buffer_is_waited_for_as_long_as_it_says_and_then_takes_everything_once(
    transport: str, telemetry: Telemetry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with piped(tmp_path, "{type: sqlite, max_bytes: 300000}") as (pipe, endpoint):
        endpoint.always(Answer(status=503, retry_after="1"))
        await asyncio.to_thread(until, lambda: full(pipe), "a full buffer")
        refused_before = {signal: pipe.refused(transport, signal) for signal in SIGNALS}
        senders = {signal: pipe.exporter(transport, signal, timeout=60) for signal in SIGNALS}
        sending = {one: asyncio.ensure_future(asyncio.to_thread(senders[one].export, getattr(telemetry, one))) for one in SIGNALS}
        await asyncio.to_thread(until, lambda: all(pipe.refused(transport, one) > refused_before[one] for one in SIGNALS), "refusals")
        waits_s = await asyncio.to_thread(until, lambda: re.findall(r"Transient error .*retrying in ([0-9.]+)s", caplog.text), "a wait")
        assert {float(wait_s) for wait_s in waits_s} <= {1.0, 2.0, 3.0, 4.0, 5.0}, "not what we asked for: the SDK's own have fractions"
        assert not any(task.done() for task in sending.values())
        endpoint.always(None)
        assert {signal: await task for signal, task in sending.items()} == SUCCESS
        for signal in SIGNALS:
            expected = items([telemetry.expected(signal)], signal)
            await endpoint.wait_until(partial(all_are_there, endpoint, signal, expected))
            assert those_of(endpoint, signal, expected) == expected
            senders[signal].shutdown()
