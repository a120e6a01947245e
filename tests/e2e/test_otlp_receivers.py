"""What both OTLP receivers promise, through real sockets: one suite over gRPC and HTTP, every answer read by the official classes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from emp_pipe.done import DONE_HEADER, Done
from emp_pipe.errors import ErrorKind
from emp_pipe.log.protocol import DeadReason
from tests.support.forward import RecordingIntake, turns
from tests.support.otlp_receiving import SIGNALS, Codec, Signal, Transport, bodies_of, connected, encoded, request, running

_FIRST = {"logs": "record 0", "traces": "span 1", "metrics": "metric.0"}


@pytest.mark.parametrize("codec", ["none", "gzip"])
@pytest.mark.parametrize("signal", SIGNALS)
async def test_each_signal_arrives_whole_in_each_compression(tmp_path: Path, transport: Transport, signal: Signal, codec: Codec) -> None:
    async with running(transport, tmp_path) as server, connected(server) as client:
        reply = await client.send(signal, encoded(request(signal, 3)), codec)
        assert (reply.code, reply.has_partial_success) == ("OK", False)
        (arrival,) = server.intake.arrivals
        assert arrival.batch is not None
        assert (arrival.batch.signal, arrival.received, arrival.invalid) == (signal, 3, 0)
        assert bodies_of([arrival])[0] == _FIRST[signal]


@pytest.mark.parametrize("compressed", ["none", "gzip"])
@pytest.mark.parametrize(
    ("said", "done"),
    [
        (None, Done()),
        ("decided,red_done", Done(decided=True, red_done=True)),
        ("aggregated , a_word_of_later", Done(aggregated=True)),
        ("Decided;red_done", Done()),
        ("decided," + "x" * 1000, Done()),
    ],
)
async def test_what_another_emp_pipe_has_done_comes_with_the_rows_and_other_words_are_ignored(
    tmp_path: Path, transport: Transport, said: str | None, done: Done, compressed: Codec
) -> None:
    headers = [(DONE_HEADER, said)] if said is not None else []
    async with running(transport, tmp_path) as server, connected(server, headers=headers) as client:
        for signal in SIGNALS:
            assert (await client.send(signal, encoded(request(signal, 3)), compressed)).code == "OK"
        large = 20_000  # decoded in a thread
        assert (await client.send("logs", encoded(request("logs", large)), compressed)).code == "OK"
        assert [(arrival.received, arrival.done) for arrival in server.intake.arrivals] == [(3, done), (3, done), (3, done), (large, done)]
    async with running(transport, tmp_path) as server, connected(server) as client:
        assert (await client.send("logs", encoded(request("logs")))).code == "OK"
        assert server.intake.arrivals[0].done == Done(), "it was taken from a request before"


async def test_success_is_said_only_after_the_commit(tmp_path: Path, transport: Transport) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running(transport, tmp_path, intake=intake) as server, connected(server) as client:
        asked = asyncio.ensure_future(client.send("logs", encoded(request("logs"))))
        await intake.until(lambda one: one.waiting == 1)
        await turns()
        assert not asked.done(), "acknowledged before it was durable"
        intake.commit()
        assert (await asked).code == "OK"


async def test_an_empty_request_succeeds_and_takes_no_commit(tmp_path: Path, transport: Transport) -> None:
    async with running(transport, tmp_path) as server, connected(server) as client:
        assert (await client.send("logs", b"")).code == "OK"
        assert (await client.send("logs", encoded(request("logs", 0)))).code == "OK"
        assert server.intake.arrivals == []


async def test_a_full_log_is_unavailable_with_a_time_to_come_again(tmp_path: Path, transport: Transport) -> None:
    intake = RecordingIntake()
    intake.admit(False)
    async with running(transport, tmp_path, intake=intake) as server, connected(server) as client:
        reply = await client.send("logs", encoded(request("logs")))
        assert reply.code == "UNAVAILABLE"
        assert 1 <= reply.retry_after_s <= 5
        intake.admit(True)
        assert (await client.send("logs", encoded(request("logs")))).code == "OK"
        assert server.intake.received == 3


@pytest.mark.parametrize("kind", [ErrorKind.LOG_FULL, ErrorKind.LOG_IO, ErrorKind.LOG_CLOSED])
async def test_what_the_log_did_not_take_is_unavailable_with_a_time_to_come_again(
    tmp_path: Path, transport: Transport, kind: ErrorKind
) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running(transport, tmp_path, intake=intake) as server, connected(server) as client:
        asked = asyncio.ensure_future(client.send("logs", encoded(request("logs"))))
        await intake.until(lambda one: one.waiting == 1)
        intake.fail(kind)
        reply = await asked
        assert reply.code == "UNAVAILABLE"
        assert 1 <= reply.retry_after_s <= 5
        assert server.otlp.held_bytes == 0


async def test_an_unreadable_request_is_invalid_with_the_offset_and_the_connection_goes_on(tmp_path: Path, transport: Transport) -> None:
    good = encoded(request("logs"))
    async with running(transport, tmp_path) as server, connected(server) as client:
        reply = await client.send("logs", good + b"\x0a\x7f")
        assert reply.code == "INVALID_ARGUMENT"
        assert f"at byte {len(good) + 2}" in reply.message
        assert reply.retry_after_s == 0
        assert (await client.send("logs", good)).code == "OK"
        assert server.intake.received == 3


async def test_bad_items_are_refused_with_place_and_reason_and_the_good_ones_kept(tmp_path: Path, transport: Transport) -> None:
    message = request("traces", 4)
    spans = message.resource_spans[0].scope_spans[0].spans
    spans[1].trace_id = bytes(16)
    spans[2].span_id = b"short"
    async with running(transport, tmp_path) as server, connected(server) as client:
        reply = await client.send("traces", encoded(message))
        assert (reply.code, reply.rejected) == ("OK", 2)
        offset = message.SerializeToString().index(spans[1].SerializeToString())
        assert f"byte {offset}: " in reply.message
        assert "trace" in reply.message
        (arrival,) = server.intake.arrivals
        assert bodies_of([arrival]) == ["span 1", "span 4"]
        assert (arrival.received, arrival.invalid, sum(letter.records for letter in arrival.dead)) == (4, 2, 2)
        assert {letter.reason for letter in arrival.dead} == {DeadReason.ENTRY_INVALID}
        assert all("127.0.0.1" in letter.peer for letter in arrival.dead)
        assert server.metric("otlp_received_items_total", signal="traces") == 4
        assert server.metric("otlp_rejected_items_total", signal="traces") == 2


async def test_partial_success_is_said_only_after_the_commit_of_the_dead_letters(tmp_path: Path, transport: Transport) -> None:
    message = request("traces", 1)
    message.resource_spans[0].scope_spans[0].spans[0].trace_id = b"short"
    intake = RecordingIntake()
    intake.auto = False
    async with running(transport, tmp_path, intake=intake) as server, connected(server) as client:
        asked = asyncio.ensure_future(client.send("traces", encoded(message)))
        await intake.until(lambda one: one.waiting == 1)
        await turns()
        assert not asked.done()
        intake.commit()
        assert (await asked).rejected == 1
        (arrival,) = intake.arrivals
        assert (arrival.batch, arrival.received, arrival.invalid) == (None, 1, 1)


@pytest.mark.parametrize("codec", ["none", "gzip"])
async def test_a_request_over_the_limit_is_too_large_also_when_only_inflated(tmp_path: Path, transport: Transport, codec: Codec) -> None:
    good = encoded(request("logs"))
    async with running(transport, tmp_path, max_request_bytes=2_000_000) as server, connected(server) as client:
        reply = await client.send("logs", good + b"\x9a\x06\x80\x92\xf4\x01" + bytes(4_000_000), codec)  # unknown field 99
        assert reply.code == "RESOURCE_EXHAUSTED"
        assert reply.retry_after_s == 0, "it will never fit: no RetryInfo, or it would be sent again"
    async with running(transport, tmp_path, max_request_bytes=2_000_000) as server, connected(server) as client:
        assert (await client.send("logs", good, codec)).code == "OK"
