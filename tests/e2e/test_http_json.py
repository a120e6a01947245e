"""Promises of the HTTP JSON receiver through real sockets: shapes, encodings, tags, times, answers, and hostile bodies among good ones."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe.component import Arrival
from emp_pipe.errors import ErrorKind
from tests.support.forward import RecordingIntake, turns
from tests.support.otlp_receiving import Running, bodies_of, connected, running
from tests.support.otlp_rows import plain_attributes

ONE = b'{"message":"one"}'
TWO = b'{"message":"two"}'
GOOD = b'{"message":"good"}'
SENT = {"Content-Type": "application/json"}


def request_of(arrival: Arrival) -> Any:
    assert arrival.batch is not None
    return ExportLogsServiceRequest.FromString(arrival.batch.to_block("none", topic="logs", block_id="b").payload("none"))


def only_row(arrival: Arrival) -> Any:
    ((log,),) = [scope.log_records for of in request_of(arrival).resource_logs for scope in of.scope_logs]
    return log


def tag_of(arrival: Arrival) -> str:
    scope = request_of(arrival).resource_logs[0].scope_logs[0].scope
    assert scope.name == "emp-pipe/http_json"
    return str(plain_attributes(scope.attributes).get("fluent.tag", ""))


async def sent(
    tmp_path: Path, body: bytes, headers: Mapping[str, str] = SENT, path: str = "/app.web", method: str = "POST", **settings: Any
) -> tuple[int, dict[str, Any], dict[str, str], list[Arrival]]:
    """Send a body between two good requests on one connection; return the answer to it, its headers, and what arrived of it."""
    async with running("http_json", tmp_path, **settings) as server, connected(server) as client:
        assert (await client.post("/x", GOOD, SENT))[0] == 200
        before = len(server.intake.arrivals)
        status, answered, said = await client.post(path, body, headers, method)
        after = len(server.intake.arrivals)
        assert (await client.post("/x", GOOD, SENT))[0] == 200
        assert len(server.intake.arrivals) == after + 1, "the good request behind it has arrived"
        assert server.otlp.held_bytes == 0
        arrivals = server.intake.arrivals[before:after]
        for arrival in arrivals:
            kept = arrival.batch.record_count if arrival.batch is not None else 0
            assert arrival.received == kept + arrival.invalid, "the books balance"
            assert arrival.invalid == sum(letter.records for letter in arrival.dead)
        return status, json.loads(said), answered, arrivals


SHAPES = {
    "one object": (ONE, ["one"]),
    "an object over several lines": (b'{\n  "message":\n"one"\n}\n', ["one"]),
    "an array": (b"[" + ONE + b",\n" + TWO + b"]", ["one", "two"]),
    "lines": (ONE + b"\n" + TWO + b"\n", ["one", "two"]),
    "lines that end as on Windows, with empty ones": (ONE + b"\r\n\r\n" + TWO, ["one", "two"]),
    "arrays in lines": (b"[" + ONE + b"]\n[" + TWO + b"]", ["one", "two"]),
    "one after another without a line's end": (ONE + TWO, ["one", "two"]),
    "a byte order mark": (b"\xef\xbb\xbf" + ONE, ["one"]),
    "nothing": (b"", []),
    "white space": (b" \n ", []),
    "an empty array": (b"[]", []),
}


@pytest.mark.parametrize("name", SHAPES)
async def test_each_shape_of_a_body_gives_its_records(tmp_path: Path, name: str) -> None:
    body, expected = SHAPES[name]
    status, said, _, arrivals = await sent(tmp_path, body)
    assert (status, said) == (200, {"refused": 0})
    assert bodies_of(arrivals) == expected


PACKERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "identity": bytes,
}


@pytest.mark.parametrize("coding", PACKERS)
async def test_each_content_encoding_is_read(tmp_path: Path, coding: str) -> None:
    status, _, _, arrivals = await sent(tmp_path, PACKERS[coding](ONE + b"\n" + TWO), SENT | {"Content-Encoding": coding})
    assert (status, bodies_of(arrivals)) == (200, ["one", "two"])


@pytest.mark.parametrize("coding", [None, *PACKERS])
async def test_a_large_body_is_decoded_in_a_thread_and_arrives_whole(tmp_path: Path, coding: str | None) -> None:
    body = b"\n".join(b'{"message":"%d"}' % number for number in range(20_000))
    headers = SENT | ({"Content-Encoding": coding} if coding else {})
    _, said, _, arrivals = await sent(tmp_path, PACKERS[coding](body) if coding else body, headers)
    assert said == {"refused": 0}
    assert bodies_of(arrivals) == [str(number) for number in range(20_000)]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "Application/JSON"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "text/plain;charset=UTF-8"},
        {"Content-Type": "application/x-ndjson"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
async def test_a_content_type_is_no_reason_to_refuse_json(tmp_path: Path, headers: dict[str, str]) -> None:
    status, _, _, arrivals = await sent(tmp_path, ONE + b"\n" + TWO, headers)
    assert (status, bodies_of(arrivals)) == (200, ["one", "two"])


async def test_a_form_has_its_records_in_the_field_json_and_may_have_a_time(tmp_path: Path) -> None:
    body = ("time=1760000000.25&json=" + quote('[{"message":"one + 1"},{"message":"ü&"}]')).encode()
    status, _, _, arrivals = await sent(tmp_path, body, {"Content-Type": "application/x-www-form-urlencoded"})
    assert (status, bodies_of(arrivals)) == (200, ["one + 1", "ü&"])
    assert {log.time_unix_nano for log in request_of(arrivals[0]).resource_logs[0].scope_logs[0].log_records} == {1_760_000_000_250_000_000}


@pytest.mark.parametrize(
    ("path", "tag"),
    [
        ("/app.web", "app.web"),
        ("/app/web", "app.web"),
        ("/app/web/", "app.web"),
        ("//app//web", "app.web"),
        ("/", ""),
        ("/a%20b.%C3%BC", "a b.ü"),
        ("/app.web?x=1", "app.web"),
        ("http://host/app.web", "app.web"),
    ],
)
async def test_the_path_is_the_tag(tmp_path: Path, path: str, tag: str) -> None:
    _, _, _, arrivals = await sent(tmp_path, ONE, path=path)
    assert tag_of(arrivals[0]) == tag


@pytest.mark.parametrize(
    "time", ["1760000000.123456789", "1760000000123456789", "2025-10-09T08:53:20.123456789Z", "2025-10-09T08%3A53%3A20.123456789Z"]
)
async def test_the_time_is_in_the_query(tmp_path: Path, time: str) -> None:
    _, _, _, arrivals = await sent(tmp_path, ONE, path=f"/x?a=b&time={time}")
    assert only_row(arrivals[0]).time_unix_nano == 1_760_000_000_123_456_789


async def test_put_is_taken_as_post_is(tmp_path: Path) -> None:
    status, _, _, arrivals = await sent(tmp_path, ONE, method="PUT")
    assert (status, bodies_of(arrivals)) == (200, ["one"])


# --- hostile bodies -----------------------------------------------------------------------------------

KEPT = {
    "a torn line": (ONE + b'\n{"message":\n' + TWO, ["one", "two"], 18, b'{"message":'),
    "a torn first line": (b'{"message":\n' + ONE + b"\n" + TWO, ["one", "two"], 0, b'{"message":'),
    "an unterminated last line": (ONE + b"\n" + TWO + b'\n{"message":"x', ["one", "two"], 36, b'{"message":"x'),
    "a line of text": (ONE + b"\nhello\n" + TWO, ["one", "two"], 18, b"hello"),
    "a NUL between lines": (ONE + b"\n\0\n" + TWO, ["one", "two"], 18, b"\0"),
    "a number among records": (b"[" + ONE + b",7," + TWO + b"]", ["one", "two"], 19, b"7"),
    "nested too deep": (
        ONE + b'\n{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}\n" + TWO,
        ["one", "two"],
        18,
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ),
}


@pytest.mark.parametrize("name", KEPT)
async def test_what_is_bad_becomes_a_dead_letter_with_its_place_and_the_good_is_kept(tmp_path: Path, name: str) -> None:
    body, expected, start, data = KEPT[name]
    status, said, _, arrivals = await sent(tmp_path, body)
    assert (status, said["refused"]) == (200, 1)
    assert bodies_of(arrivals) == expected
    (letter,) = arrivals[0].dead
    assert letter.payload == data
    assert letter.offset is not None
    assert start <= letter.offset <= start + len(data)
    assert f"at byte {letter.offset}" in said["error"]
    assert letter.component == "http_json"
    assert letter.peer == "127.0.0.1"


REFUSED = {
    "unterminated": (b'{"message":"x', 13),
    "torn array": (b"[" + ONE + b",", 19),
    "text": (b"hello", 0),
    "a number": (b"7", 0),
    "deep without an end": (b"[" * 100_000, 100_000),
    "deep objects without an end": (b'{"a":' * 100_000, 500_000),
    "a raw line's end in a string": (b'{"message":"a\nb"}', 13),
    "an escape that is none": (b'{"message":"\\x"}', 12),
    "no number": (b'{"n":NaN}', 5),
    "a zero in front": (b'{"n":01}', 7),
    "single quotes": (b"{'a':1}", 1),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_body_that_cannot_be_read_is_400_with_the_offset_and_nothing_is_kept(tmp_path: Path, name: str) -> None:
    body, offset = REFUSED[name]
    status, said, _, arrivals = await sent(tmp_path, body)
    assert (status, arrivals) == (400, [])
    assert said["error"].endswith(f"at byte {offset}")


async def test_compressed_bytes_that_are_none_are_400(tmp_path: Path) -> None:
    for coding in ("gzip", "deflate", "zstd"):
        status, said, _, arrivals = await sent(tmp_path / coding, b"\x1f\x8b not it", SENT | {"Content-Encoding": coding})
        assert (status, arrivals) == (400, [])
        assert "inflated" in said["error"]


async def test_values_at_their_ends_keep_what_they_say(tmp_path: Path) -> None:
    body = (
        b'{"message":"\\u0000 \\ud83d half \\ud83d\\ude00 \xff","i":9223372036854775807,"u":18446744073709551615,'
        b'"big":123456789012345678901234567890,"huge":1e999,"d":0.1,"same":1,"same":2,"deep":' + b'{"x":' * 31 + b"1" + b"}" * 31 + b"}"
    )
    status, said, _, arrivals = await sent(tmp_path, body)
    assert (status, said) == (200, {"refused": 0})
    log = only_row(arrivals[0])
    assert log.body.string_value == "\0 \ufffd half \U0001f600 \ufffd"
    got = plain_attributes(log.attributes)
    assert [pair.key for pair in log.attributes].count("same") == 1
    assert {key: got[key] for key in ("i", "u", "big", "huge", "d", "same")} == {
        "i": 2**63 - 1,
        "u": "18446744073709551615",
        "big": "123456789012345678901234567890",
        "huge": "1e999",
        "d": 0.1,
        "same": 2,
    }


async def test_a_huge_string_arrives_whole(tmp_path: Path) -> None:
    _, _, _, arrivals = await sent(tmp_path, b'{"message":"' + b"x" * 5_000_000 + b'"}')
    assert len(only_row(arrivals[0]).body.string_value) == 5_000_000


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_a_bomb_is_413_and_costs_no_memory(tmp_path: Path, coding: str) -> None:
    bomb = PACKERS[coding](b" " * (8 << 20))
    status, _, _, arrivals = await sent(tmp_path, bomb, SENT | {"Content-Encoding": coding}, max_request_bytes=1 << 20)
    assert (status, arrivals) == (413, [])


async def test_too_large_is_413_before_it_is_read(tmp_path: Path) -> None:
    status, said, _, arrivals = await sent(tmp_path, ONE + b" " * 2048, max_request_bytes=2048)
    assert (status, arrivals) == (413, [])
    assert "max_request_bytes" in said["error"]


# --- heads --------------------------------------------------------------------------------------------

HEADS: dict[str, tuple[str, str, dict[str, str], int]] = {
    "GET": ("GET", "/x", {}, 405),
    "DELETE": ("DELETE", "/x", {}, 405),
    "msgpack": ("POST", "/x", {"Content-Type": "application/msgpack"}, 415),
    "multipart": ("POST", "/x", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
    "brotli": ("POST", "/x", {"Content-Encoding": "br"}, 415),
    "a long tag": ("POST", "/" + "x" * 1025, {}, 400),
    "a time that is none": ("POST", "/x?time=yesterday", {}, 400),
    "a web page": ("POST", "/x", {"Origin": "https://example.com", "Content-Type": "text/plain"}, 403),
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_that_asks_for_something_else_is_refused(tmp_path: Path, name: str) -> None:
    method, path, headers, expected = HEADS[name]
    status, said, _, arrivals = await sent(tmp_path, ONE, headers, path, method)
    assert (status, arrivals) == (expected, [])
    assert said["error"]


# --- answers ------------------------------------------------------------------------------------------


async def test_the_answer_waits_for_the_commit(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running("http_json", tmp_path, intake=intake) as server, connected(server) as client:
        await client.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(ONE), ONE))
        await intake.until(lambda one: one.waiting == 1)
        answer = asyncio.ensure_future(client.answer())
        await turns()
        assert not answer.done()
        intake.commit()
        assert (await answer)[0] == 200


@pytest.mark.parametrize("kind", [ErrorKind.LOG_FULL, ErrorKind.LOG_IO])
async def test_what_the_log_does_not_take_is_503_with_a_time_to_come_again(tmp_path: Path, kind: ErrorKind) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running("http_json", tmp_path, intake=intake) as server, connected(server) as client:
        await client.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(ONE), ONE))
        await intake.until(lambda one: one.waiting == 1)
        intake.fail(kind)
        status, headers, _ = await client.answer()
        assert (status, intake.arrivals) == (503, [])
        assert int(headers["retry-after"]) >= 1


async def test_a_full_buffer_is_503_before_the_body(tmp_path: Path) -> None:
    async with running("http_json", tmp_path) as server, connected(server) as client:
        server.intake.admit(False)
        status, headers, _ = await client.post("/x", ONE, SENT)
        assert (status, int(headers["retry-after"]) >= 1, server.intake.arrivals) == (503, True, [])
        server.intake.admit(True)
        assert (await client.post("/x", ONE, SENT))[0] == 200


@pytest.mark.parametrize("given", ["", "Bearer wrong", "Basic hunter2", "hunter2", "Bearer"])
async def test_without_the_token_nobody_gets_in(tmp_path: Path, given: str) -> None:
    async with running("http_json", tmp_path, token="hunter2") as server, connected(server) as client:
        status, headers, _ = await client.post("/x", ONE, {"Authorization": given} if given else {})
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert not server.intake.arrivals
        assert (await client.post("/x", ONE, {"Authorization": "Bearer hunter2"}))[0] == 200


async def test_a_clients_name_is_in_its_dead_letters(tmp_path: Path) -> None:
    async with running("http_json", tmp_path, client_tokens={"worker": "t"}) as server, connected(server, token="t") as client:
        assert (await client.post("/x", ONE + b"\n7", SENT))[0] == 200
        assert [letter.peer for letter in server.intake.dead] == ["worker (127.0.0.1)"]


async def test_requests_and_records_are_counted(tmp_path: Path) -> None:
    async with running("http_json", tmp_path) as server, connected(server) as client:
        await client.post("/x", ONE + b"\n7\n" + TWO, SENT)
        await client.post("/x", b"torn", SENT)
        counted = _counts(server)
        assert counted == {"OK": 1.0, "INVALID_ARGUMENT": 1.0, "received": 3.0, "rejected": 1.0}


def _counts(server: Running) -> dict[str, float]:
    requests = {code: server.metric("http_json_received_requests_total", signal="logs", code=code) for code in ("OK", "INVALID_ARGUMENT")}
    return requests | {what: server.metric(f"http_json_{what}_items_total", signal="logs") for what in ("received", "rejected")}


async def test_a_body_in_chunks_and_one_that_is_sent_in_pieces_arrive(tmp_path: Path) -> None:
    async with running("http_json", tmp_path) as server, connected(server) as client:
        await client.write(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (ONE[:5], ONE[5:]):
            await client.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await client.write(b"0\r\n\r\n")
        assert (await client.answer())[0] == 200
        for byte in b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(TWO), TWO):
            await client.write(bytes([byte]))
        assert (await client.answer())[0] == 200
        assert bodies_of(server.intake.arrivals) == ["one", "two"]


async def test_a_stop_counts_no_refusal_of_what_nobody_asked(tmp_path: Path) -> None:
    async with running("http_json", tmp_path) as server, connected(server) as silent:
        assert (await silent.post("/x", ONE, SENT))[0] == 200
        await server.receiver.stop(server.receiver._context.clock.monotonic_s() + 3600)
        assert await silent.closed() == b""
        assert server.otlp.counts.requests == {("logs", "OK"): 1}
