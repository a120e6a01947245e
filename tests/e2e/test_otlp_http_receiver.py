"""Promises of the OTLP/HTTP receiver alone, through real sockets: encodings, content types, paths, methods, HTTP itself, browsers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status

from tests.support.forward import RecordingIntake, turns
from tests.support.otlp_receiving import (
    CONTENT_TYPES,
    REJECTED,
    SIGNALS,
    Codec,
    Encoding,
    HttpClient,
    Running,
    Signal,
    bodies_of,
    compressed,
    connected,
    encoded,
    head,
    request,
    running,
)

FIRST = {"logs": "record 0", "traces": "span 1", "metrics": "metric.0"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def status_in(body: bytes, content_type: str) -> Status:
    """The google.rpc.Status of a refusal, read as its content type says."""
    status = Status()
    if content_type == "application/json":
        json_format.Parse(body, status)
    else:
        assert content_type == "application/x-protobuf"
        status.ParseFromString(body)
    return status


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("encoding", ["protobuf", "json"])
@pytest.mark.parametrize("signal", SIGNALS)
async def test_each_encoding_of_each_signal_arrives_and_is_answered_in_its_own_content_type(
    tmp_path: Path, signal: Signal, encoding: Encoding, codec: Codec
) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        reply = await client.send(signal, encoded(request(signal, 3), encoding), codec, encoding)
        assert (reply.code, reply.has_partial_success) == ("OK", False)
        (arrival,) = server.intake.arrivals
        assert (arrival.received, arrival.invalid) == (3, 0)
        assert bodies_of([arrival])[0] == FIRST[signal]


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("encoding", ["protobuf", "json"])
async def test_large_requests_are_decoded_in_a_thread_and_arrive_whole(tmp_path: Path, encoding: Encoding, codec: Codec) -> None:
    message = request("logs", 20_000)
    async with running("http", tmp_path) as server, connected(server) as client:
        assert (await client.send("logs", encoded(message, encoding), codec, encoding)).code == "OK"
        assert bodies_of(server.intake.arrivals) == [f"record {number}" for number in range(20_000)]
        assert server.otlp.held_bytes == 0


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_partial_success_names_count_place_and_reason_in_the_content_type(
    tmp_path: Path, signal: Signal, encoding: Encoding
) -> None:
    message: Any = request(signal, 3)
    if signal == "metrics":
        point = message.resource_metrics[0].scope_metrics[0].metrics[1].gauge.data_points[0]
        point.exemplars.add(as_double=1).trace_id = b"short"
    elif signal == "logs":
        message.resource_logs[0].scope_logs[0].log_records[1].trace_id = b"short"
    else:
        message.resource_spans[0].scope_spans[0].spans[1].trace_id = b"short"
    async with running("http", tmp_path) as server, connected(server) as client:
        reply = await client.send(signal, encoded(message, encoding), encoding=encoding)
        assert (reply.code, reply.rejected) == ("OK", 1), REJECTED[signal]
        assert reply.message
        (arrival,) = server.intake.arrivals
        assert (arrival.received, arrival.invalid, len(arrival.dead)) == (3, 1, 1)
        assert len(bodies_of([arrival])) == 2


@pytest.mark.parametrize(
    "content_type", ["application/x-protobuf; charset=utf-8", "Application/X-Protobuf", "application/json;charset=UTF-8"]
)
async def test_parameters_and_case_of_a_content_type_do_not_matter(tmp_path: Path, content_type: str) -> None:
    encoding: Encoding = "json" if "json" in content_type else "protobuf"
    async with running("http", tmp_path) as server, connected(server) as client:
        status, headers, _ = await client.post("/v1/logs", encoded(request("logs"), encoding), {"Content-Type": content_type})
        assert (status, headers["content-type"]) == (200, CONTENT_TYPES[encoding])


REFUSED_HEADS: dict[str, tuple[str, str, dict[str, str], int]] = {
    "no content type": ("POST", "/v1/logs", {}, 415),
    "text": ("POST", "/v1/logs", {"Content-Type": "text/plain"}, 415),
    "a form": ("POST", "/v1/logs", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "gRPC": ("POST", "/v1/logs", {"Content-Type": "application/grpc"}, 415),
    "deflate": ("POST", "/v1/logs", PROTOBUF | {"Content-Encoding": "deflate"}, 415),
    "brotli": ("POST", "/v1/logs", PROTOBUF | {"Content-Encoding": "br"}, 415),
    "two encodings": ("POST", "/v1/logs", PROTOBUF | {"Content-Encoding": "gzip, gzip"}, 415),
    "the root": ("POST", "/", PROTOBUF, 404),
    "a signal that is none": ("POST", "/v1/profiles", PROTOBUF, 404),
    "a path below": ("POST", "/v1/logs/x", PROTOBUF, 404),
    "a slash at the end": ("POST", "/v1/logs/", PROTOBUF, 404),
    "GET": ("GET", "/v1/logs", {}, 405),
    "PUT": ("PUT", "/v1/logs", PROTOBUF, 405),
    "OPTIONS without CORS": ("OPTIONS", "/v1/logs", {"Origin": "https://a", "Access-Control-Request-Method": "POST"}, 405),
}


@pytest.mark.parametrize("case", REFUSED_HEADS)
async def test_what_the_head_alone_makes_wrong_is_a_status_and_the_connection_goes_on(tmp_path: Path, case: str) -> None:
    method, path, headers, wanted = REFUSED_HEADS[case]
    good = encoded(request("logs"))
    async with running("http", tmp_path) as server, connected(server) as client:
        assert (await client.send("logs", good)).code == "OK"
        status, got, body = await client.post(path, b"x" * 1000 if method != "GET" else b"", headers, method)
        assert status == wanted
        told = status_in(body, got["content-type"])
        assert told.code
        assert told.message
        assert (await client.send("logs", good)).code == "OK"
        assert len(server.intake.arrivals) == 2


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
async def test_a_refusal_is_in_the_content_type_of_the_request(tmp_path: Path, encoding: Encoding) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        for path, headers in (("/nowhere", {}), ("/v1/logs", {"Content-Encoding": "br"})):
            _, got, body = await client.post(path, b"", {"Content-Type": CONTENT_TYPES[encoding]} | headers)
            assert got["content-type"] == CONTENT_TYPES[encoding]
            assert status_in(body, got["content-type"]).message


async def test_the_refused_method_and_encoding_come_with_those_that_are_taken(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        _, headers, _ = await client.post("/v1/logs", b"", {}, "GET")
        assert headers["allow"] == "POST"
        _, headers, _ = await client.post("/v1/logs", b"", PROTOBUF | {"Content-Encoding": "br"})
        assert headers["accept-encoding"] == "gzip, zstd"


# --- HTTP itself ------------------------------------------------------------------------------------


def framed(body: bytes, size: int) -> bytes:
    """A body in chunks."""
    return (
        b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[at : at + size] for at in range(0, len(body), size))) + b"0\r\n\r\n"
    )


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
async def test_a_chunked_body_arrives_whole_and_the_next_request_too(tmp_path: Path, size: int) -> None:
    body = compressed(encoded(request("logs", 500)), "gzip")
    headers = PROTOBUF | {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
    async with running("http", tmp_path) as server, connected(server) as client:
        for _ in range(2):
            await client.write(head("/v1/logs", headers) + framed(body, size))
            assert (await client.answer())[0] == 200
        assert server.intake.received == 1000
        assert server.otlp.held_bytes == 0


async def test_a_large_chunked_body_arrives_whole(tmp_path: Path) -> None:
    body = encoded(request("logs", 30_000))
    async with running("http", tmp_path) as server, connected(server) as client:
        await client.write(head("/v1/logs", PROTOBUF | {"Transfer-Encoding": "chunked"}) + framed(body, 100_000))
        assert (await client.answer())[0] == 200
        assert server.intake.received == 30_000


async def test_a_body_is_asked_for_where_the_client_waits_for_that(tmp_path: Path) -> None:
    body = encoded(request("logs"))
    async with running("http", tmp_path) as server, connected(server) as client:
        await client.write(head("/v1/logs", PROTOBUF | {"Content-Length": str(len(body)), "Expect": "100-continue"}))
        status, _, _ = await client.answer()
        assert status == 100
        await client.write(body)
        assert (await client.answer())[0] == 200
        await client.write(head("/v1/nothing", PROTOBUF | {"Content-Length": str(len(body)), "Expect": "100-continue"}))
        assert (await client.answer())[0] == 404
        assert await client.closed() == b"", "whether the body comes is not known: the connection cannot go on"


async def test_requests_sent_one_behind_the_other_are_answered_in_order(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    message = request("logs", 1)
    requests = []
    for number in range(200):
        message.resource_logs[0].scope_logs[0].log_records[0].body.string_value = f"number {number}"
        body = message.SerializeToString()
        requests.append(head("/v1/logs", PROTOBUF | {"Content-Length": str(len(body))}) + body)
    async with running("http", tmp_path, intake=intake) as server, connected(server) as client:
        await client.write(b"".join(requests))
        await intake.until(lambda one: one.waiting == 1)
        await turns()
        assert intake.waiting == 1, "the second is not begun before the first is durable"
        intake.auto = True
        intake.commit()
        for _ in range(200):
            assert (await client.answer())[0] == 200
        assert bodies_of(intake.arrivals) == [f"number {number}" for number in range(200)]


async def test_a_request_byte_by_byte_is_a_request(tmp_path: Path) -> None:
    body = encoded(request("logs", 1))
    data = b"\r\n" + head("/v1/logs", PROTOBUF | {"Content-Length": str(len(body))}) + body
    async with running("http", tmp_path) as server, connected(server) as client:
        for at in range(len(data)):
            await client.write(data[at : at + 1])
            await asyncio.sleep(0)
        assert (await client.answer())[0] == 200
        assert server.intake.received == 1


async def test_a_connection_ends_after_the_answer_where_the_client_wishes_so(tmp_path: Path) -> None:
    async with running("http", tmp_path) as server, connected(server) as client:
        status, headers, _ = await client.post("/v1/logs", encoded(request("logs")), PROTOBUF | {"Connection": "close"})
        assert (status, headers["connection"]) == (200, "close")
        assert await client.closed() == b""


async def test_a_client_that_has_sent_all_and_closed_its_side_still_gets_its_answer(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    body = encoded(request("logs"))
    async with running("http", tmp_path, intake=intake) as server, connected(server) as client:
        await client.write(head("/v1/logs", PROTOBUF | {"Content-Length": str(len(body))}) + body)
        client.writer.write_eof()
        await intake.until(lambda one: one.waiting == 1)
        await turns()
        intake.commit()
        assert (await client.answer())[0] == 200
        assert await client.closed() == b""


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    body = encoded(request("logs", 1000))
    starts = (
        head("/v1/logs", PROTOBUF | {"Content-Length": str(len(body))}),
        head("/v1/logs", PROTOBUF | {"Transfer-Encoding": "chunked"}),
    )
    async with running("http", tmp_path) as server:
        for start, half in zip(starts, (body[:5000], b"1000\r\n" + body[:4000]), strict=True):
            async with connected(server) as client:
                await client.write(start + half)
                await _until(lambda: server.otlp.held_bytes > 0, "the request began")
            await _until(lambda: not server.receiver._service.connections, "the connection is gone")
            assert server.otlp.held_bytes == 0
        assert server.receiver._service.places.taken == 0
        assert server.intake.arrivals == []


async def test_a_client_that_goes_away_before_the_commit_loses_only_its_answer(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    body = encoded(request("logs"))
    async with running("http", tmp_path, intake=intake) as server:
        async with connected(server) as client:
            await client.write(head("/v1/logs", PROTOBUF | {"Content-Length": str(len(body))}) + body)
            await intake.until(lambda one: one.waiting == 1)
            client.writer.transport.abort()
        await turns()
        intake.commit()
        assert intake.received == 3
        await _until(lambda: not server.receiver._service.connections, "the connection is gone")
        assert server.otlp.held_bytes == 0


async def _until(holds: Any, what: str) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.005)
    assert holds(), what


# --- browsers ---------------------------------------------------------------------------------------

CORS = {"allowed_origins": ["https://app.example.com", "https://*.pages.example"], "allowed_headers": ["X-Tenant"], "max_age_s": 600}


async def ask(client: HttpClient, origin: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"} | {name.replace("_", "-"): value for name, value in headers.items()}
    await client.write(head("/v1/traces", asked, "OPTIONS"))
    return await client.answer()


@pytest.mark.parametrize("origin", ["https://app.example.com", "https://a.pages.example", "HTTPS://a-b.pages.example"])
async def test_a_browser_of_an_allowed_page_learns_what_it_may_send(tmp_path: Path, origin: str) -> None:
    async with running("http", tmp_path, cors=CORS, token="s3cret") as server, connected(server) as client:
        status, headers, body = await ask(client, origin, Access_Control_Request_Headers="content-type,x-tenant, Authorization")
        assert (status, body) == (204, b"")
        assert headers["access-control-allow-origin"] == origin
        assert headers["access-control-allow-methods"] == "POST"
        assert headers["access-control-allow-headers"] == "content-type,x-tenant, Authorization"
        assert headers["access-control-max-age"] == "600"
        assert "content-length" not in headers, "RFC 9110: a 204 has none"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "http://app.example.com",
        "https://app.example.com.evil",
        "null",
        "https://pages.example",
        "https://evil.example/a.pages.example",
    ],
)
async def test_a_browser_of_another_page_gets_no_permission(tmp_path: Path, origin: str) -> None:
    async with running("http", tmp_path, cors=CORS) as server, connected(server) as client:
        status, headers, _ = await ask(client, origin)
        assert status == 204
        assert not [name for name in headers if name.startswith("access-control-allow")]


async def test_a_header_that_is_not_allowed_is_not_permitted(tmp_path: Path) -> None:
    async with running("http", tmp_path, cors=CORS) as server, connected(server) as client:
        _, headers, _ = await ask(client, "https://app.example.com", Access_Control_Request_Headers="x-other")
        assert "access-control-allow-headers" not in headers


async def test_every_answer_to_an_allowed_page_can_be_read_by_it(tmp_path: Path) -> None:
    origin = {"Origin": "https://app.example.com"}
    async with running("http", tmp_path, cors=CORS) as server, connected(server) as client:
        for path, headers, wanted in (
            ("/v1/logs", PROTOBUF, 200),
            ("/v1/logs", {"Content-Type": "text/plain"}, 415),
            ("/nowhere", PROTOBUF, 404),
        ):
            status, got, _ = await client.post(path, encoded(request("logs")), headers | origin)
            assert (status, got["access-control-allow-origin"], got["vary"]) == (wanted, origin["Origin"], "Origin")
        server.intake.admit(False)
        status, got, _ = await client.post("/v1/logs", encoded(request("logs")), PROTOBUF | origin)
        assert (status, got["access-control-allow-origin"]) == (503, origin["Origin"])
        assert "Retry-After" in got["access-control-expose-headers"]
        status, got, _ = await client.post("/v1/logs", b"", PROTOBUF | {"Origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in got


async def test_any_page_may_send_where_the_setting_says_so(tmp_path: Path) -> None:
    async with running("http", tmp_path, cors={"allowed_origins": ["*"], "allowed_headers": ["*"]}) as server, connected(server) as client:
        _, headers, _ = await ask(client, "http://127.0.0.1:3000", Access_Control_Request_Headers="x-anything")
        assert headers["access-control-allow-origin"] == "http://127.0.0.1:3000"
        assert headers["access-control-allow-headers"] == "x-anything"


async def test_a_page_cannot_write_headers_of_its_own_into_an_answer(tmp_path: Path) -> None:
    async with running("http", tmp_path, cors={"allowed_origins": ["*"]}) as server, connected(server) as client:
        await client.write(
            b"OPTIONS /v1/logs HTTP/1.1\r\nHost: h\r\nOrigin: https://a\rX-Evil: 1\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        )
        status, headers, body = await client.answer()
        assert status == 400
        assert "x-evil" not in headers
        assert json.loads(body)["message"]


async def test_how_many_requests_were_answered_with_what_is_counted(tmp_path: Path) -> None:
    body = encoded(request("logs"))

    def count(server: Running, signal: str, code: str) -> float:
        return server.metric("otlp_received_requests_total", signal=signal, code=code)

    async with running("http", tmp_path) as server, connected(server) as client:
        for _ in range(3):
            await client.send("logs", body)
        await client.send("traces", b"\xff")
        await client.post("/v1/metrics", b"", {})
        await client.post("/nowhere", b"", {})
        assert count(server, "logs", "OK") == 3
        assert count(server, "traces", "INVALID_ARGUMENT") == 1
        assert count(server, "metrics", "UNIMPLEMENTED") == 1
        assert count(server, "", "NOT_FOUND") == 1
        assert server.metric("otlp_received_bytes_total") == 3 * len(body) + 1
        assert server.metric("otlp_received_items_total", signal="logs") == 9
