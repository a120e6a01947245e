"""Promises of the OTLP/gRPC receiver alone: methods, compressions, metadata, trailers, many calls at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tests.support.forward import PATIENCE_S, RecordingIntake
from tests.support.otlp_receiving import METHODS, SIGNALS, Signal, bodies_of, connected, encoded, request, running

GOOD = encoded(request("logs"))


@pytest.mark.parametrize(
    "method",
    [
        "/opentelemetry.proto.collector.logs.v1.LogsService/Import",
        "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
        "/grpc.health.v1.Health/Check",
        "/",
        "/x",
    ],
)
async def test_a_method_that_does_not_exist_is_unimplemented_and_the_connection_goes_on(tmp_path: Path, method: str) -> None:
    async with running("grpc", tmp_path) as server, connected(server) as client:
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await client.channel.unary_unary(method)(GOOD, timeout=PATIENCE_S)
        assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await client.send("logs", GOOD)).code == "OK"


async def test_a_compression_that_is_not_taken_is_unimplemented_and_named(tmp_path: Path) -> None:
    async with running("grpc", tmp_path) as server, connected(server) as client:
        export = client.channel.unary_unary(METHODS["logs"])
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await export(GOOD, timeout=PATIENCE_S, compression=grpc.Compression.Deflate)
        assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "deflate" in (told.value.details() or "")
        assert server.intake.arrivals == []


@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_message_that_inflates_to_a_byte_too_many_is_refused_in_our_words_and_counted(tmp_path: Path, signal: Signal) -> None:
    padded = encoded(request(signal)) + b"\x9a\x06\xe8\x07" + bytes(1000)  # an unknown field makes it long, and small where compressed
    limit = len(padded) - 1
    async with running("grpc", tmp_path, max_request_bytes=limit) as server, connected(server) as client:
        reply = await client.send(signal, padded, "gzip")
        assert (reply.code, reply.message) == (
            "RESOURCE_EXHAUSTED",
            f"the request is larger than {limit:,} bytes (max_request_bytes); send smaller batches",
        )
        assert Status.FromString(reply.headers["grpc-status-details-bin"]).message == reply.message
        assert server.metric("otlp_received_requests_total", signal=signal, code="RESOURCE_EXHAUSTED") == 1
        assert server.otlp.held_bytes == 0
    async with running("grpc", tmp_path, max_request_bytes=limit + 1) as server, connected(server) as client:
        assert (await client.send(signal, padded, "gzip")).code == "OK"
        assert server.metric("otlp_received_requests_total", signal=signal, code="OK") == 1


async def test_unavailable_has_retry_info_in_both_trailers_as_different_clients_read_it(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.admit(False)
    async with running("grpc", tmp_path, intake=intake) as server, connected(server) as client:
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await client.channel.unary_unary(METHODS["logs"])(GOOD, timeout=PATIENCE_S)
        trailers = dict(told.value.trailing_metadata() or ())
        direct = RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"])  # type: ignore[arg-type]
        assert 1 <= direct.retry_delay.seconds <= 5
        status = Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]
        detail = RetryInfo()
        assert status.details[0].Unpack(detail)
        assert (status.code, detail) == (grpc.StatusCode.UNAVAILABLE.value[0], direct)
        assert status.message == told.value.details()


async def test_senders_are_asked_to_come_again_at_different_times(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.admit(False)
    async with running("grpc", tmp_path, intake=intake) as server, connected(server) as client:
        waits = {(await client.send("logs", GOOD)).retry_after_s for _ in range(60)}
        assert waits == {1, 2, 3, 4, 5}


async def test_a_message_that_comes_in_pieces_is_one_message(tmp_path: Path) -> None:
    large = encoded(request("logs", 50_000))
    async with running("grpc", tmp_path) as server, connected(server) as client:
        assert (await client.send("logs", large)).code == "OK"
        assert (await client.send("logs", large, "gzip")).code == "OK"
        assert bodies_of(server.intake.arrivals) == [f"record {number}" for number in range(50_000)] * 2


async def test_of_several_messages_in_a_call_the_first_is_taken(tmp_path: Path) -> None:
    """Export is unary: no client sends a second message, and one that does is not trusted with more."""

    async def several() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield GOOD

    async with running("grpc", tmp_path) as server, connected(server) as client:
        await client.channel.stream_unary(METHODS["logs"])(several(), timeout=PATIENCE_S)
        assert server.intake.received == 3


async def test_many_calls_at_once_on_one_connection_are_each_answered(tmp_path: Path) -> None:
    async with running("grpc", tmp_path, max_concurrent_reads=4) as server, connected(server) as client:
        replies = await asyncio.gather(*(client.send("logs", GOOD, "gzip" if number % 2 else "none") for number in range(300)))
        assert {reply.code for reply in replies} == {"OK"}, {reply.message for reply in replies}
        assert server.intake.received == 900
        assert server.otlp.held_bytes == 0


async def test_metadata_of_any_kind_does_not_matter(tmp_path: Path) -> None:
    metadata = (("x-tenant", "a"), ("trace-bin", b"\x00\xff"), ("authorization", "Basic x"))
    async with running("grpc", tmp_path) as server, connected(server) as client:
        await client.channel.unary_unary(METHODS["logs"])(GOOD, timeout=PATIENCE_S, metadata=metadata)
        assert server.intake.received == 3


async def test_no_other_process_can_share_the_port(tmp_path: Path) -> None:
    async with running("grpc", tmp_path) as server:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(server.address)
