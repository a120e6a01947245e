"""Bad input through the real sockets of both OTLP receivers: the specified answer with its place, the good items kept, nothing left behind.

Every case is sent between two good requests on one connection, and both of these must arrive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.otlp_receiving import (
    GOOD,
    SIGNALS,
    Codec,
    Signal,
    Transport,
    among_good,
    bodies_of,
    compressed,
    connected,
    encoded,
    request,
    running,
)

# --- items ------------------------------------------------------------------------------------------

IDS: dict[str, tuple[str, bytes]] = {
    "a short trace id": ("trace_id", b"short"),
    "a long trace id": ("trace_id", bytes(range(1, 18))),
    "a trace id of zeros": ("trace_id", bytes(16)),
    "no trace id": ("trace_id", b""),
    "a short span id": ("span_id", b"abc"),
    "a long span id": ("span_id", bytes(range(1, 10))),
    "a span id of zeros": ("span_id", bytes(8)),
    "no span id": ("span_id", b""),
}


@pytest.mark.parametrize("case", IDS)
async def test_a_span_with_a_wrong_id_is_refused_and_the_others_kept(tmp_path: Path, transport: Transport, case: str) -> None:
    name, value = IDS[case]
    message = request("traces", 3)
    spans = message.resource_spans[0].scope_spans[0].spans
    setattr(spans[1], name, value)
    reply, rows, received, invalid = await among_good(tmp_path, transport, "traces", encoded(message))
    assert (reply.code, reply.rejected) == ("OK", 1)
    assert (rows, received, invalid) == (["span 1", "span 3"], 3, 1)
    start = encoded(message).index(spans[1].SerializeToString())
    offset = int(reply.message.split("byte ")[1].split(":")[0])
    assert start <= offset <= start + spans[1].ByteSize(), "the place is within the span"


@pytest.mark.parametrize("case", ["a short trace id", "a long span id"])
async def test_a_log_record_with_a_wrong_id_is_refused_and_the_others_kept(tmp_path: Path, transport: Transport, case: str) -> None:
    name, value = IDS[case]
    message = request("logs", 3)
    setattr(message.resource_logs[0].scope_logs[0].log_records[1], name, value)
    reply, rows, _, _ = await among_good(tmp_path, transport, "logs", encoded(message))
    assert (reply.code, reply.rejected, rows) == ("OK", 1, ["record 0", "record 2"])


async def test_a_data_point_with_a_wrong_id_in_its_exemplar_is_refused_and_the_others_kept(tmp_path: Path, transport: Transport) -> None:
    message = request("metrics", 3)
    points = message.resource_metrics[0].scope_metrics[0].metrics[1].gauge.data_points
    points.add(as_double=5)
    points[0].exemplars.add(as_double=1).trace_id = b"short"
    reply, rows, received, invalid = await among_good(tmp_path, transport, "metrics", encoded(message))
    assert (reply.code, reply.rejected, received, invalid) == ("OK", 1, 4, 1)
    assert rows == ["metric.0", "metric.1", "metric.2"]


def nested(depth: int) -> bytes:
    """An AnyValue of lists in lists; the official classes make none of over a hundred messages."""
    value = _field(1, b"deep")
    for _ in range(depth):
        value = _field(5, _field(1, value))
    return value


@pytest.mark.parametrize("depth", [60, 20_000])
@pytest.mark.parametrize("where", ["body", "attributes"])
async def test_a_value_nested_deeper_than_parsers_go_costs_its_record_alone(
    tmp_path: Path, transport: Transport, where: str, depth: int
) -> None:
    value = nested(depth)
    record = _field(5, value) if where == "body" else _field(6, _field(1, b"deep") + _field(2, value))
    bad = _field(1, _field(2, _field(2, record)))
    good = encoded(request("logs", 1))
    reply, rows, _, _ = await among_good(tmp_path, transport, "logs", good + bad + good)
    assert (reply.code, reply.rejected, rows) == ("OK", 1, ["record 0", "record 0"])


# --- requests ---------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


UNREADABLE = {
    "an unfinished varint": b"\xff\xff",
    "a length behind the end": b"\x0a\x7f",
    "a length of 2^63": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "field number 0": b"\x02\x00",
    "a group that ends without a beginning": b"\x0c",
    "wire type 6": b"\x0e",
    "wire type 7": b"\x1f",
    "the resource rows as a varint": b"\x08\x01",
    "the resource rows as eight bytes": b"\x09" + bytes(8),
    "the scope rows as a varint": _field(1, b"\x10\x01"),
    "the rows as a varint": _field(1, _field(2, b"\x10\x01")),
    "a broken resource": _field(1, _field(1, b"\x0a\x05abc")),
    "a resource's key that is no UTF-8": _field(1, _field(1, _field(1, _field(1, b"\xff")))),
    "a scope's name that is no UTF-8": _field(1, _field(2, _field(1, _field(1, b"\xff")))),
    "text": b"hello, I am no protobuf",
    "JSON": b'{"resourceLogs":[]}',
}


@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_request_that_cannot_be_followed_is_invalid_with_its_place_and_leaves_nothing(
    tmp_path: Path, transport: Transport, signal: Signal, case: str
) -> None:
    reply, rows, received, _ = await among_good(tmp_path, transport, signal, GOOD[signal] + UNREADABLE[case])
    assert (reply.code, reply.retry_after_s) == ("INVALID_ARGUMENT", 0)
    offset = int(reply.message.rsplit("at byte ", 1)[1])
    assert len(GOOD[signal]) <= offset <= len(GOOD[signal] + UNREADABLE[case])
    assert (rows, received) == ([], 0)


@pytest.mark.parametrize("codec", ["none", "gzip"])
@pytest.mark.parametrize("signal", SIGNALS)
async def test_nothing_and_what_holds_nothing_succeeds(tmp_path: Path, transport: Transport, signal: Signal, codec: Codec) -> None:
    for data in (b"", encoded(request(signal, 0)), _field(1, b""), _field(99, b"unknown")):
        reply, rows, received, _ = await among_good(tmp_path, transport, signal, data, codec)
        assert (reply.code, reply.has_partial_success, rows, received) == ("OK", False, [], 0)


@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_request_torn_at_any_byte_is_refused_or_keeps_what_is_whole(tmp_path: Path, transport: Transport, signal: Signal) -> None:
    data = GOOD[signal]
    async with running(transport, tmp_path) as server, connected(server) as client:
        for end in range(len(data)):
            reply = await client.send(signal, data[:end])
            assert reply.code in ("OK", "INVALID_ARGUMENT")
        assert (await client.send(signal, data)).code == "OK"
        assert bodies_of(server.intake.arrivals[-1:]) == bodies_of(server.intake.arrivals)[-2:]
        assert server.otlp.held_bytes == 0


@pytest.mark.parametrize("signal", SIGNALS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_get_an_answer_of_the_specification(tmp_path: Path, signal: Signal, changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD[signal])
    for at, byte in changes:
        data[at % len(data)] = byte

    async def send() -> None:
        reply, _, _, _ = await among_good(tmp_path, "http", signal, bytes(data))
        assert reply.code in ("OK", "INVALID_ARGUMENT")

    asyncio.run(send())


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
async def test_a_torn_or_false_compression_is_invalid(tmp_path: Path, codec: Codec) -> None:
    whole = compressed(GOOD["logs"], codec)
    async with running("http", tmp_path) as server, connected(server) as client:
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": codec}
        for body in (whole[:-9], whole[: len(whole) // 2], whole[:1], GOOD["logs"], b"", whole[:-4] + b"XXXX" if codec == "gzip" else b"x"):
            status, _, _ = await client.post("/v1/logs", body, headers)
            assert status == (200 if body == b"" else 400), body
        assert (await client.post("/v1/logs", whole, headers))[0] == 200
        assert server.intake.received == 2
        assert server.otlp.held_bytes == 0


async def test_a_torn_gzip_is_invalid_by_grpc(tmp_path: Path) -> None:
    torn = compressed(GOOD["logs"], "gzip")[:-9]  # sent as it is, it is taken for what it begins as
    reply, _, received, _ = await among_good(tmp_path, "grpc", "logs", torn)
    assert (reply.code, received) == ("INVALID_ARGUMENT", 0)


# --- JSON -------------------------------------------------------------------------------------------


def logs_json(record: Any, **more: Any) -> bytes:
    good = {"timeUnixNano": "1", "body": {"stringValue": "record 0"}}
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [good, record]}]}], **more}).encode()


def _lists(depth: int) -> Any:
    value: Any = {"stringValue": "deep"}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    return value


BAD_RECORDS: dict[str, Any] = {
    "a number for a string": {"severityText": 5},
    "a string for an object": {"body": "text"},
    "an object for a list": {"attributes": {"a": "b"}},
    "a fraction for an integer": {"timeUnixNano": 1.5},
    "words for an integer": {"timeUnixNano": "soon"},
    "an integer out of range": {"timeUnixNano": "18446744073709551616"},
    "a name that no enum has": {"severityNumber": "LOUD"},
    "lists in lists without end": {"body": _lists(150)},
    "an id that is no hex": {"traceId": "zz" * 16},
    "an id of the wrong length": {"traceId": "abcd"},
    "bytes that are no base64": {"body": {"bytesValue": "!!"}},
    "a record that is a number": 5,
    "a record that is a list": [],
}


@pytest.mark.parametrize("case", BAD_RECORDS)
async def test_a_record_of_wrong_types_in_json_is_refused_and_the_others_kept(tmp_path: Path, case: str) -> None:
    reply, rows, received, invalid = await among_good(tmp_path, "http", "logs", logs_json(BAD_RECORDS[case]), encoding="json")
    assert (reply.code, reply.rejected) == ("OK", 1), reply
    assert (rows, received, invalid) == (["record 0"], 2, 1)
    assert reply.message


BAD_TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "torn": logs_json({})[:-3],
    "a list": b"[]",
    "a string": b'"logs"',
    "protobuf": GOOD["logs"],
    "a comma too many": b'{"resourceLogs":[],}',
    "no quotes": b"{resourceLogs:[]}",
    "two texts": b"{}{}",
    "an object for the list": b'{"resourceLogs":{}}',
    "a number for a resource": b'{"resourceLogs":[5]}',
    "bytes that are no UTF-8": b'{"resourceLogs":[{"schemaUrl":"\xff"}]}',
    "deep lists": b'{"a":' + b"[" * 100_000,
}


@pytest.mark.parametrize("case", BAD_TEXTS)
async def test_a_text_that_cannot_be_followed_is_invalid_with_its_place(tmp_path: Path, case: str) -> None:
    reply, _, received, _ = await among_good(tmp_path, "http", "logs", BAD_TEXTS[case], encoding="json")
    assert (reply.code, received) == ("INVALID_ARGUMENT", 0)
    assert "byte" in reply.message


async def test_unknown_fields_of_json_are_ignored_and_ids_may_have_any_case(tmp_path: Path) -> None:
    record = {
        "traceId": "ABCDEFabcdef00112233445566778899",
        "spanId": "aAbBcCdDeEfF0011",
        "body": {"stringValue": "record 1"},
        "unknown": [1],
    }
    reply, rows, _, _ = await among_good(tmp_path, "http", "logs", logs_json(record, other={"a": None}), encoding="json")
    assert (reply.code, reply.has_partial_success, rows) == ("OK", False, ["record 0", "record 1"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["resourceLogs", "scopeLogs", "logRecords", "body", "attributes", "resource", "key"]), inner)
        ),
        max_leaves=10,
    )
)
def test_any_json_gets_an_answer_of_the_specification(tmp_path: Path, text: Any) -> None:
    async def send() -> None:
        reply, _, _, _ = await among_good(tmp_path, "http", "logs", json.dumps(text).encode(), encoding="json")
        assert reply.code in ("OK", "INVALID_ARGUMENT")

    asyncio.run(send())


# --- bytes that are no HTTP -------------------------------------------------------------------------

JSON_HEAD = b"POST /v1/logs HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
NOT_HTTP = {
    "nonsense": b"\x00\x01\x02\x03\r\n\r\n",
    "no version": b"POST /v1/logs\r\n\r\n",
    "no host": b"POST /v1/logs HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /v1/logs HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and chunks": b"POST /v1/logs HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a gRPC client": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a chunk without size": JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "headers without end": b"POST /v1/logs HTTP/1.1\r\nHost: h\r\n" + b"X-A: b\r\n" * 5000,
    "a target without end": b"POST /" + b"a" * 20_000,
}


@pytest.mark.parametrize("case", NOT_HTTP)
async def test_what_is_no_http_gets_its_status_and_the_end(tmp_path: Path, case: str) -> None:
    wanted = {"a gRPC client": 505, "headers without end": 431, "a target without end": 431}.get(case, 400)
    async with running("http", tmp_path) as server, connected(server) as client, connected(server) as other:
        await client.write(NOT_HTTP[case])
        status, headers, body = await client.answer()
        assert (status, headers["connection"], headers["content-type"]) == (wanted, "close", "application/json")
        assert json.loads(body)["message"]
        with contextlib.suppress(ConnectionError):
            client.writer.write_eof()
        assert await client.closed() == b""
        assert (await other.send("logs", GOOD["logs"])).code == "OK"
        assert server.otlp.held_bytes == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_to_either_port_leave_the_receiver_well(tmp_path: Path, data: bytes) -> None:
    async def send() -> None:
        for transport in ("http", "grpc"):
            async with running(transport, tmp_path) as server, connected(server) as client:
                _, writer = await asyncio.open_connection(*server.address)
                writer.write(data)
                writer.write_eof()
                assert (await client.send("logs", GOOD["logs"])).code == "OK"
                writer.close()
                assert server.intake.received == 2

    asyncio.run(send())
