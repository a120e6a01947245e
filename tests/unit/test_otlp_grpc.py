"""What OTLP/gRPC answers mean to the exporter, against a strict endpoint of grpcio's own server; each test is a call or a few."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError

from emp_pipe.component import Parcel, Sent, Signal
from emp_pipe.delivery.grpc_answers import error_of
from emp_pipe.errors import ConfigError, DeliveryError, ErrorKind, Retry
from emp_pipe.exporters.otlp_grpc import OtlpGrpcConfig, OtlpGrpcExporter
from tests.support.context import make_context
from tests.support.otlp_grpc_endpoint import GrpcAnswer, OtlpGrpcEndpoint
from tests.support.telemetry import log_block, metric_block, span_block

LATER, SLOWLY, SMALLER = Retry.LATER, Retry.AFTER_CONFIG_CHANGE, Retry.SMALLER


@pytest.fixture
async def endpoint() -> AsyncIterator[OtlpGrpcEndpoint]:
    async with OtlpGrpcEndpoint() as endpoint:
        yield endpoint


async def send(endpoint: OtlpGrpcEndpoint | str, *, block: Any = None, answers: tuple[GrpcAnswer, ...] = (), **settings: Any) -> Sent:
    """Send one block through a fresh exporter."""
    if isinstance(endpoint, OtlpGrpcEndpoint):
        endpoint.script(*answers)
        endpoint = endpoint.url
    settings.setdefault("endpoint", endpoint)
    exporter = OtlpGrpcExporter("otlp_grpc", OtlpGrpcConfig(**settings), make_context())
    await exporter.open()
    try:
        return await exporter.send(Parcel(block or log_block(3, codec="none"), 1, 1e9))
    finally:
        await exporter.close(0.0)


async def refusal(endpoint: OtlpGrpcEndpoint, answer: GrpcAnswer) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await send(endpoint, answers=(answer,))
    assert str(caught.value).startswith("otlp_grpc: ")
    return caught.value


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_each_signal_arrives_at_its_service_whatever_the_block_is_compressed_with(
    endpoint: OtlpGrpcEndpoint, compression: str, codec: str
) -> None:
    for block in (log_block(3, codec=codec), span_block(4, codec=codec), metric_block(5, codec=codec)):
        await send(endpoint, block=block, compression=compression)
    assert not endpoint.violations
    assert [(request.signal, request.records) for request in endpoint.received] == [("logs", 3), ("traces", 4), ("metrics", 5)]


async def test_the_message_is_the_blocks_request_byte_for_byte(endpoint: OtlpGrpcEndpoint) -> None:
    block = log_block([f"row {index} {'x' * 500}" for index in range(4000)], codec="none")
    await send(endpoint, block=block)
    assert endpoint.received[0].wire_bytes == block.payload_bytes > 2_000_000
    assert endpoint.received[0].message.SerializeToString() == block.payload("none")


async def test_headers_and_token_are_metadata_and_our_own_name_is_in_it(endpoint: OtlpGrpcEndpoint) -> None:
    endpoint.token = "s3cret"
    endpoint.required_headers = {"x-team": "gpu"}
    await send(endpoint, token="s3cret", headers={"X-Team": {"value": "gpu"}})
    assert endpoint.received[0].headers["user-agent"].startswith("emp-pipe/")


@pytest.mark.parametrize("connections", [1, 3])
async def test_calls_take_turns_on_the_connections(endpoint: OtlpGrpcEndpoint, connections: int) -> None:
    exporter = OtlpGrpcExporter("otlp_grpc", OtlpGrpcConfig(endpoint=endpoint.url, connections=connections), make_context())
    await exporter.open()
    for _ in range(20):
        await exporter.send(Parcel(log_block(3), 1, 1e9))
    await exporter.close(0.0)
    assert len(endpoint.peers) == connections


@pytest.mark.parametrize(
    ("code", "kind", "retry"),
    [
        ("CANCELLED", ErrorKind.SERVER_ERROR, LATER),
        ("UNKNOWN", ErrorKind.SERVER_ERROR, LATER),
        ("INVALID_ARGUMENT", ErrorKind.REFUSED, SMALLER),
        ("DEADLINE_EXCEEDED", ErrorKind.TIMED_OUT, LATER),
        ("NOT_FOUND", ErrorKind.REFUSED, SLOWLY),
        ("ALREADY_EXISTS", ErrorKind.REFUSED, SMALLER),
        ("PERMISSION_DENIED", ErrorKind.UNAUTHENTICATED, SLOWLY),
        ("RESOURCE_EXHAUSTED", ErrorKind.THROTTLED, SLOWLY),
        ("FAILED_PRECONDITION", ErrorKind.REFUSED, SMALLER),
        ("ABORTED", ErrorKind.SERVER_ERROR, LATER),
        ("OUT_OF_RANGE", ErrorKind.SERVER_ERROR, LATER),
        ("UNIMPLEMENTED", ErrorKind.REFUSED, SLOWLY),
        ("INTERNAL", ErrorKind.SERVER_ERROR, LATER),
        ("UNAVAILABLE", ErrorKind.SERVER_ERROR, LATER),
        ("DATA_LOSS", ErrorKind.SERVER_ERROR, LATER),
        ("UNAUTHENTICATED", ErrorKind.UNAUTHENTICATED, SLOWLY),
    ],
)
async def test_a_code_says_what_to_do_next(endpoint: OtlpGrpcEndpoint, code: str, kind: ErrorKind, retry: Retry) -> None:
    error = await refusal(endpoint, GrpcAnswer(code, "no\r\nreason \x1b[31m"))
    assert (error.kind, error.retry) == (kind, retry)
    assert f"gRPC {code}: no  reason  [31m" in str(error)
    assert bool(error.fields.get("maybe_poisoned")) == (code in ("INTERNAL", "UNKNOWN"))


@pytest.mark.parametrize("retry_in", [("google.rpc.retryinfo-bin",), ("grpc-status-details-bin",)])
@pytest.mark.parametrize(
    "code",
    ["CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN"],
)
async def test_a_retry_info_in_either_trailer_is_obeyed(endpoint: OtlpGrpcEndpoint, code: str, retry_in: tuple[str, ...]) -> None:
    error = await refusal(endpoint, GrpcAnswer(code, retry_info_s=2.5, retry_in=retry_in))
    assert (error.kind, error.retry, error.retry_after_s) == (ErrorKind.THROTTLED, LATER, 2.5)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "FAILED_PRECONDITION"])
async def test_a_retry_info_does_not_make_a_permanent_code_retryable(endpoint: OtlpGrpcEndpoint, code: str) -> None:
    error = await refusal(endpoint, GrpcAnswer(code, retry_info_s=2.5))
    assert (error.retry is LATER, error.retry_after_s) == (False, None)


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff" * 50, b"\x0a\x00", b"\x0a\x02\x08\x00", b"\x0a\x0b\x08" + b"\xff" * 9 + b"\x01", b"\x0a\x04\x10\x80"]
)
async def test_a_retry_info_that_makes_no_sense_is_ignored(endpoint: OtlpGrpcEndpoint, garbage: bytes) -> None:
    trailers = (("google.rpc.retryinfo-bin", garbage), ("grpc-status-details-bin", garbage))
    error = await refusal(endpoint, GrpcAnswer("UNAVAILABLE", trailers=trailers))
    assert (error.kind, error.retry_after_s) == (ErrorKind.SERVER_ERROR, None)


async def test_a_request_over_the_servers_limit_is_too_large(endpoint: OtlpGrpcEndpoint) -> None:
    block = log_block(["x" * 5_000_000], codec="none")
    with pytest.raises(DeliveryError) as caught:
        await send(endpoint, block=block)
    assert (caught.value.kind, caught.value.retry) == (ErrorKind.TOO_LARGE, SMALLER)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (5242880 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (5242913 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "grpc: received message after decompression larger than max 4194304"),
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4194304: 5242880"),
        ("RESOURCE_EXHAUSTED", "Received message exceeds the maximum configured message size."),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 5242880 bytes, the limit is: 4194304 bytes"),
        ("UNKNOWN", "Received http2 header with status: 413"),
        ("UNKNOWN", "unexpected HTTP status code received from server: 413 (Request Entity Too Large)"),
    ],
)
def test_the_words_of_servers_for_a_message_that_is_too_large_are_known(code: str, said: str) -> None:
    error = error_of(code, said, (), place="otlp_grpc", request_bytes=5 << 20)
    assert (error.kind, error.retry) == (ErrorKind.TOO_LARGE, SMALLER)


def test_an_exhausted_resource_without_words_is_the_size_only_above_what_servers_usually_take() -> None:
    assert error_of("RESOURCE_EXHAUSTED", "", (), place="", request_bytes=(4 << 20) + 1).kind is ErrorKind.TOO_LARGE
    assert error_of("RESOURCE_EXHAUSTED", "", (), place="", request_bytes=4 << 20).kind is ErrorKind.THROTTLED


async def test_a_partial_success_is_a_success_with_a_count(endpoint: OtlpGrpcEndpoint) -> None:
    assert await send(endpoint, answers=(GrpcAnswer(rejected=2, warning="two are bad"),)) == Sent(2, "two are bad")
    assert await send(endpoint, answers=(GrpcAnswer(warning="deprecated"),)) == Sent(0, "deprecated")
    assert (await send(endpoint, answers=(GrpcAnswer(rejected=99),))).rejected_records == 3, "no more than were sent"


@pytest.mark.parametrize("body", [b"\xff\xfe[{" * 100, b"x" * 3_000_000])
async def test_a_success_that_cannot_be_read_is_a_success(endpoint: OtlpGrpcEndpoint, body: bytes) -> None:
    sent = await send(endpoint, answers=(GrpcAnswer(body=body),))
    assert sent.rejected_records == 0
    assert sent.message


async def test_nobody_listening_is_unreachable() -> None:
    with pytest.raises(DeliveryError) as caught:
        await send("http://127.0.0.1:9")
    assert (caught.value.kind, caught.value.retry) == (ErrorKind.UNREACHABLE, LATER)
    assert "127.0.0.1:9" in str(caught.value)


@pytest.mark.parametrize(
    "said", ["Stream removed (Socket closed)", "recvmsg:Connection reset by peer (104)", "GOAWAY received", "ping timeout"]
)
async def test_the_end_of_a_connection_behind_the_server_is_known_by_its_words(endpoint: OtlpGrpcEndpoint, said: str) -> None:
    assert (await refusal(endpoint, GrpcAnswer("UNAVAILABLE", said))).kind is ErrorKind.UNREACHABLE


def test_addresses_are_plain_or_tls_by_their_scheme() -> None:
    config = OtlpGrpcConfig(endpoint="https://otlp.example:4317", metrics_endpoint="http://m.example")
    assert [config.address(signal) for signal in Signal] == ["https://otlp.example:4317", "https://otlp.example:4317", "http://m.example"]
    assert OtlpGrpcConfig(logs_endpoint="http://l.example:4317", only={"signals": ["logs"]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "no address for logs, traces, metrics"),
        ({"endpoint": "localhost:4317"}, "http:// or https://"),
        ({"endpoint": "grpc://x:4317"}, "http:// or https://"),
        ({"endpoint": "http://user:pw@x"}, "password"),
        ({"endpoint": "http://x:4318/v1/logs"}, "no path"),
        ({"logs_endpoint": "http://x:4317"}, "no address for traces, metrics"),
        ({"endpoint": "http://x", "dataset": "abc"}, "preset: dash0"),
        ({"endpoint": "http://x", "compression": "zstd"}, "'none' or 'gzip'"),
        ({"endpoint": "http://x", "connections": 0}, "greater than 0"),
        ({"endpoint": "http://x", "keepalive_s": 1}, "greater than or equal to 10"),
        ({"endpoint": "http://x", "headers": {"grpc-timeout": "x"}}, "set by the exporter"),
        ({"endpoint": "http://x", "headers": {"User-Agent": "x"}}, "set by the exporter"),
        ({"endpoint": "http://x", "headers": {"key-bin": "x"}}, "for bytes"),
        ({"endpoint": "http://x", "headers": {"a b": "x"}}, "not a name for gRPC metadata"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        OtlpGrpcConfig(**settings)


async def test_a_key_that_would_break_out_of_its_header_is_refused_at_start() -> None:
    exporter = OtlpGrpcExporter("otlp_grpc", OtlpGrpcConfig(endpoint="http://x", token="a\r\nhost: evil"), make_context())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="printable ASCII"):
        await exporter.open()
