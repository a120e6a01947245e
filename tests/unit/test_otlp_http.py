"""What OTLP/HTTP answers mean to the exporter, against a strict endpoint on loopback; each test is one request."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import ValidationError

from emp_pipe.component import Parcel, Sent, Signal
from emp_pipe.delivery.http_answers import retry_after_s
from emp_pipe.delivery.otlp import OtlpDestinationConfig
from emp_pipe.errors import ConfigError, DeliveryError, ErrorKind, Retry
from emp_pipe.exporters.otlp_http import OtlpHttpConfig, OtlpHttpExporter
from tests.support.context import make_context
from tests.support.otlp_endpoint import Answer, OtlpEndpoint
from tests.support.telemetry import log_block, metric_block, span_block


@pytest.fixture
async def endpoint() -> AsyncIterator[OtlpEndpoint]:
    async with OtlpEndpoint() as endpoint:
        yield endpoint


async def send(endpoint: OtlpEndpoint | str, *, block: Any = None, answers: tuple[Answer, ...] = (), **settings: Any) -> Sent:
    """Send one block through a fresh exporter."""
    if isinstance(endpoint, OtlpEndpoint):
        endpoint.script(*answers)
        endpoint = endpoint.url
    settings.setdefault("endpoint", endpoint)
    config = OtlpHttpConfig(**settings)
    exporter = OtlpHttpExporter("otlp_http", config, make_context())
    await exporter.open()
    try:
        return await exporter.send(Parcel(block or log_block(3, codec=config.compression), 1, 0.0))
    finally:
        await exporter.close(0.0)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_each_signal_arrives_at_its_path_in_each_encoding(endpoint: OtlpEndpoint, compression: str) -> None:
    for block in (log_block(3, codec=compression), span_block(4, codec=compression), metric_block(5, codec=compression)):
        await send(endpoint, block=block, compression=compression)
    assert not endpoint.violations
    assert [(request.signal, request.records) for request in endpoint.received] == [("logs", 3), ("traces", 4), ("metrics", 5)]
    assert {request.headers.get("Content-Encoding", "none") for request in endpoint.received} == {compression}


async def test_the_body_is_the_block_byte_for_byte(endpoint: OtlpEndpoint) -> None:
    block = log_block([f"row {index} {'x' * 500}" for index in range(4000)], codec="none")
    await send(endpoint, block=block, compression="none")
    assert endpoint.received[0].wire_bytes == block.payload_bytes > 2_000_000
    assert endpoint.received[0].message.SerializeToString() == block.payload("none")


async def test_headers_and_token_are_sent_and_our_own_name(endpoint: OtlpEndpoint) -> None:
    endpoint.token = "s3cret"
    endpoint.required_headers = {"X-Team": "gpu"}
    await send(endpoint, token="s3cret", headers={"X-Team": {"value": "gpu"}})
    assert endpoint.received[0].headers["User-Agent"].startswith("emp-pipe/")
    assert "Accept-Encoding" not in endpoint.received[0].headers


async def test_requests_of_one_exporter_share_a_connection(endpoint: OtlpEndpoint) -> None:
    exporter = OtlpHttpExporter("otlp_http", OtlpHttpConfig(endpoint=endpoint.url), make_context())
    await exporter.open()
    for _ in range(20):
        await exporter.send(Parcel(log_block(3), 1, 0.0))
    await exporter.close(0.0)
    assert len(endpoint.connections) == 1


async def refusal(endpoint: OtlpEndpoint, answer: Answer) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await send(endpoint, answers=(answer,))
    assert str(caught.value).startswith("otlp_http: ")
    return caught.value


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        (400, ErrorKind.REFUSED, Retry.SMALLER),
        (401, ErrorKind.UNAUTHENTICATED, Retry.AFTER_CONFIG_CHANGE),
        (402, ErrorKind.REFUSED, Retry.AFTER_CONFIG_CHANGE),
        (403, ErrorKind.UNAUTHENTICATED, Retry.AFTER_CONFIG_CHANGE),
        (404, ErrorKind.REFUSED, Retry.AFTER_CONFIG_CHANGE),
        (408, ErrorKind.SERVER_ERROR, Retry.LATER),
        (413, ErrorKind.TOO_LARGE, Retry.SMALLER),
        (415, ErrorKind.REFUSED, Retry.AFTER_CONFIG_CHANGE),
        (422, ErrorKind.REFUSED, Retry.SMALLER),
        (429, ErrorKind.THROTTLED, Retry.LATER),
        (500, ErrorKind.SERVER_ERROR, Retry.LATER),
        (502, ErrorKind.SERVER_ERROR, Retry.LATER),
        (503, ErrorKind.SERVER_ERROR, Retry.LATER),
        (504, ErrorKind.SERVER_ERROR, Retry.LATER),
    ],
)
async def test_a_status_says_what_to_do_next(endpoint: OtlpEndpoint, status: int, kind: ErrorKind, retry: Retry) -> None:
    error = await refusal(endpoint, Answer(status=status))
    assert (error.kind, error.retry) == (kind, retry)
    assert f"HTTP {status}" in str(error)
    assert bool(error.fields.get("maybe_poisoned")) == (status == 500)


async def test_a_redirect_is_not_followed(endpoint: OtlpEndpoint) -> None:
    error = await refusal(endpoint, Answer(status=307, location=f"{endpoint.url}/v1/logs"))
    assert (error.kind, error.retry) == (ErrorKind.REFUSED, Retry.AFTER_CONFIG_CHANGE)
    assert endpoint.requests == 1


async def test_the_destinations_own_words_are_in_the_error(endpoint: OtlpEndpoint) -> None:
    assert "no such dataset" in str(await refusal(endpoint, Answer(status=400, message="no such dataset")))
    plain = Answer(status=503, body=b"upstream\r\n\x1b[31mdown", content_type="text/plain")
    assert "upstream   [31mdown" in str(await refusal(endpoint, plain))
    as_json = Answer(status=429, body=b'{"code": 8, "message": "slow down"}', content_type="application/json")
    assert "slow down" in str(await refusal(endpoint, as_json))


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_read_in_seconds_and_as_a_date(endpoint: OtlpEndpoint, status: int) -> None:
    assert (await refusal(endpoint, Answer(status=status, retry_after="7"))).retry_after_s == 7.0
    import time

    error = await refusal(endpoint, Answer(status=status, retry_after=formatdate(time.time() + 90, usegmt=True)))
    assert error.retry_after_s is not None
    assert 80 < error.retry_after_s <= 90


def test_a_retry_after_that_makes_no_sense_is_ignored() -> None:
    for text in ("", "soon", "nan", "inf", "Thu, 99 Foo 2020", "1e999", "\x00"):
        assert retry_after_s(text, 0) is None
    assert retry_after_s("-5", 0) == 0.0
    assert retry_after_s("Thu, 01 Jan 1970 00:00:10 GMT", 20 * 10**9) == 0.0
    assert retry_after_s("Thu, 01 Jan 1970 01:00:10 GMT", 0, "Thu, 01 Jan 1970 01:00:00 GMT") == 10.0
    assert retry_after_s("Thu, 01 Jan 1970 00:00:10 GMT", 4 * 10**9, "yesterday") == 6.0


@pytest.mark.parametrize("drop", ["before", "mid"])
async def test_a_connection_that_breaks_before_the_answer_is_complete_is_tried_again(endpoint: OtlpEndpoint, drop: str) -> None:
    error = await refusal(endpoint, Answer(drop=drop))
    assert (error.kind, error.retry) == (ErrorKind.UNREACHABLE, Retry.LATER)


async def test_nobody_listening_is_unreachable() -> None:
    with pytest.raises(DeliveryError) as caught:
        await send("http://127.0.0.1:9")
    assert (caught.value.kind, caught.value.retry) == (ErrorKind.UNREACHABLE, Retry.LATER)
    assert "127.0.0.1:9" in str(caught.value)


async def test_over_tls_the_certificate_is_checked(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("otlp.example").configure_cert(context)
    async with OtlpEndpoint(tls=context) as endpoint:
        await send(endpoint, tls={"ca_file": tmp_path / "ca.pem", "server_name": "otlp.example"})
        assert endpoint.received[0].records == 3
        for settings in ({"server_name": "otlp.example"}, {"ca_file": tmp_path / "ca.pem"}):  # an unknown authority; another name
            with pytest.raises(DeliveryError) as caught:
                await send(endpoint, tls=settings)
            assert (caught.value.kind, caught.value.retry) == (ErrorKind.UNREACHABLE, Retry.LATER)
            assert "certificate" in str(caught.value)
        assert endpoint.requests == 1


@pytest.mark.parametrize(
    "answer", [b"220 mail.example ESMTP\r\n", b"\x00" * 1000, b"HTTP/1.1 999999\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 9999]
)
async def test_an_answer_that_is_no_http_is_tried_again(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with pytest.raises(DeliveryError) as caught:
            await send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert caught.value.retry is Retry.LATER
    assert len(str(caught.value)) < 1000


async def test_a_partial_success_is_a_success_with_a_count(endpoint: OtlpEndpoint) -> None:
    assert await send(endpoint, answers=(Answer(rejected=2, warning="two are bad"),)) == Sent(2, "two are bad")
    assert await send(endpoint, answers=(Answer(warning="deprecated"),)) == Sent(0, "deprecated")
    assert (await send(endpoint, answers=(Answer(rejected=99),))).rejected_records == 3, "no more than were sent"
    in_json = Answer(body=b'{"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": "bad"}}', content_type="application/json")
    assert await send(endpoint, answers=(in_json,)) == Sent(1, "bad")


@pytest.mark.parametrize("content_type", ["application/x-protobuf", "application/json", "text/plain"])
async def test_a_success_that_cannot_be_read_is_a_success(endpoint: OtlpEndpoint, content_type: str) -> None:
    assert (await send(endpoint, answers=(Answer(body=b"\xff\xfe[{" * 100, content_type=content_type),))).rejected_records == 0


@pytest.mark.parametrize("count", ["1e999", "-1e999", "NaN", "true", "null", "[]", '"x"'])
async def test_a_success_with_a_count_that_is_none_is_not_sent_again(endpoint: OtlpEndpoint, count: str) -> None:
    in_json = Answer(body=b'{"partialSuccess": {"rejectedLogRecords": %s}}' % count.encode(), content_type="application/json")
    assert (await send(endpoint, answers=(in_json,))).rejected_records in (0, 1)


async def test_a_web_page_is_no_success(endpoint: OtlpEndpoint) -> None:
    error = await refusal(endpoint, Answer(body=b"<html>hello</html>", content_type="text/html"))
    assert error.retry is Retry.AFTER_CONFIG_CHANGE


async def test_a_long_answer_makes_a_short_error(endpoint: OtlpEndpoint) -> None:
    error = await refusal(endpoint, Answer(status=400, body=b"x" * 3_000_000, content_type="text/plain"))
    assert len(str(error)) < 1000


def test_addresses_follow_the_specification() -> None:
    config = OtlpHttpConfig(endpoint="https://otlp.example:4318/prefix/", metrics_endpoint="http://m.example/other")
    assert [config.address(signal) for signal in Signal] == [
        "https://otlp.example:4318/prefix/v1/logs",
        "https://otlp.example:4318/prefix/v1/traces",
        "http://m.example/other",
    ]
    assert OtlpHttpConfig(logs_endpoint="http://l.example/v1/logs", only={"signals": ["logs"]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "no address for logs, traces, metrics"),
        ({"endpoint": "ftp://x"}, "http:// or https://"),
        ({"endpoint": "http://a..b"}, "http:// or https://"),
        ({"endpoint": "localhost:4318"}, "http:// or https://"),
        ({"endpoint": "http://user:pw@x"}, "password"),
        ({"logs_endpoint": "http://x/v1/logs"}, "no address for traces, metrics"),
        ({"endpoint": "http://x", "dataset": "abc"}, "preset: dash0"),
        ({"preset": "dash0"}, "token"),
        ({"preset": "dash0", "token": "t", "dataset": "ab"}, "3 to 26"),
        ({"preset": "dash0", "token": "t", "dataset": "a" * 27}, "3 to 26"),
        ({"preset": "dash0", "token": "t", "dataset": "my dataset"}, "3 to 26"),
        ({"preset": "dash0", "token": "t", "region": "a/b"}, "region"),
        ({"endpoint": "http://x", "headers": {"Content-Type": "x"}}, "set by the exporter"),
        ({"endpoint": "http://x", "headers": {"a b": "x"}}, "not a header name"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        OtlpHttpConfig(**settings)


@pytest.mark.parametrize("settings", [{}, {"logs_endpoint": "http://x"}, {"endpoint": "http://x"}], ids=["nothing", "logs", "all"])
def test_a_destination_that_no_protocol_says_the_address_of_cannot_be_made(settings: dict[str, Any]) -> None:
    for make in (OtlpDestinationConfig.model_validate, lambda given: OtlpDestinationConfig(**given)):
        with pytest.raises(TypeError, match="address"):
            make(settings)


async def test_a_key_that_would_break_out_of_its_header_is_refused_at_start() -> None:
    exporter = OtlpHttpExporter("otlp_http", OtlpHttpConfig(endpoint="http://x", token="a\r\nHost: evil"), make_context())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="printable ASCII"):
        await exporter.open()


def test_secrets_do_not_show() -> None:
    config = OtlpHttpConfig(endpoint="http://x", token="t0ken", headers={"X-Key": "k3y"})  # type: ignore[arg-type]
    assert "t0ken" not in repr(config) + str(config.model_dump(mode="json"))
    assert "k3y" not in repr(config) + str(config.model_dump(mode="json"))


async def test_the_dash0_preset_sets_address_and_headers(endpoint: OtlpEndpoint) -> None:
    config = OtlpHttpConfig(preset="dash0", token="t", region="us-west-2")  # type: ignore[arg-type]
    assert config.address(Signal.LOGS) == "https://ingress.us-west-2.aws.dash0.com/v1/logs"
    endpoint.token = "t"
    await send(endpoint, preset="dash0", token="t", dataset="prod-eu", compression="gzip")
    assert endpoint.received[0].headers["Dash0-Dataset"] == "prod-eu"
    assert endpoint.received[0].headers["Content-Encoding"] == "gzip"
