"""Promises of the Forward receiver under pressure: a full log, a failing disk, budgets, limits, silence, stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.component import Arrival
from emp_pipe.errors import ConfigError, ErrorKind
from tests.support.forward import (
    PATIENCE_S,
    Certificates,
    RecordingIntake,
    Running,
    connected,
    entries_of,
    message_frame,
    packed_frame,
    running,
    turns,
    until_connections,
    zstd_frame,
)


async def test_when_the_log_admits_nothing_sockets_are_not_read_and_nothing_is_lost(tmp_path: Path):
    intake = RecordingIntake()
    intake.admit(False)
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        frames = [packed_frame(entries_of(range(n * 1000, (n + 1) * 1000)), chunk=f"c{n}") for n in range(100)]
        sending = asyncio.ensure_future(peer.send(b"".join(frames)))
        await turns()
        assert intake.received == 0
        assert not sending.done(), "the sender must feel the pressure"
        intake.admit(True)
        await sending
        assert [await peer.ack() for _ in range(100)] == [f"c{n}" for n in range(100)]
        assert sorted(intake.numbers()) == list(range(100_000))


class _TurnByTurn(RecordingIntake):
    """Counts how many records arrive before the event loop looks at anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.most_in_a_turn = 0
        self._in_this_turn = 0

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        if not self._in_this_turn:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._in_this_turn += arrival.received
        return super().submit(arrival)

    def _next_turn(self) -> None:
        self.most_in_a_turn = max(self.most_in_a_turn, self._in_this_turn)
        self._in_this_turn = 0


async def test_a_sender_that_always_has_more_lets_everything_else_have_its_turn(tmp_path: Path):
    intake = _TurnByTurn()
    intake.admit(False)  # until the socket is full
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        frame = packed_frame(entries_of(range(1000)))
        sending = asyncio.ensure_future(peer.send(frame * 300))
        await turns()
        intake.admit(True)
        await sending
        await intake.until_records(300_000)
    assert intake.most_in_a_turn * len(frame) / 1000 < 1 << 20


async def test_a_log_that_is_full_after_all_makes_records_wait_and_loses_none(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(message_frame(1) + packed_frame(entries_of([2]), chunk="c"))
        await intake.until(lambda one: one.waiting == 1)
        intake.admit(False)
        intake.fail(ErrorKind.LOG_FULL)
        await turns()
        assert intake.waiting == 0
        intake.auto = True
        intake.admit(True)
        assert await peer.ack() == "c"
        assert sorted(intake.numbers()) == [1, 2]


async def test_when_the_disk_fails_the_connection_is_closed_without_an_ack(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(packed_frame(entries_of([1]), chunk="c"))
        await intake.until(lambda one: one.waiting == 1)
        intake.fail(ErrorKind.LOG_IO)
        assert await peer.closed() == b""
        intake.auto = True
        async with connected(server.address) as again:
            await again.send(packed_frame(entries_of([1]), chunk="c"))
            assert await again.ack() == "c"
        assert intake.numbers() == [1]


async def test_records_without_a_chunk_wait_for_the_disk_because_nobody_can_send_them_again(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(message_frame(1))
        await intake.until(lambda one: one.waiting == 1)
        intake.auto = True
        intake.fail(ErrorKind.LOG_IO)
        await intake.until_records(1)
        assert intake.numbers() == [1]
        assert server.metric("forward_received_lost_records_total") == 0


async def test_a_connection_with_too_much_under_way_is_paused_and_goes_on_after_the_commit(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake, max_unacked_bytes=200_000) as server, connected(server.address) as peer:
        frames = [packed_frame(entries_of(range(n * 1000, (n + 1) * 1000)), chunk=f"c{n}") for n in range(200)]
        sending = asyncio.ensure_future(peer.send(b"".join(frames)))
        await intake.until(lambda one: one.waiting > 0)
        await turns()
        held = sum(arrival.received for arrival, _ in intake._open)
        assert held < 50_000, "it read on although nothing was durable"
        intake.auto = True
        intake.commit()
        await sending
        for n in range(200):
            assert await peer.ack() == f"c{n}"
        assert intake.received == 200_000
        assert server.receiver._hub.unacked_bytes == 0


async def test_the_budget_of_all_connections_together_holds_and_frees_itself(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    settings = {"max_unacked_bytes": 10_000_000, "max_total_unacked_bytes": 300_000}
    async with running(tmp_path, intake=intake, **settings) as server, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(server.address)) for _ in range(4)]
        frames = b"".join(packed_frame(entries_of(range(1000)), chunk=f"c{n}") for n in range(50))
        sending = [asyncio.ensure_future(peer.send(frames)) for peer in peers]
        await intake.until(lambda one: one.waiting > 0)
        await turns()
        assert server.receiver._hub.unacked_bytes < 4_000_000
        intake.auto = True
        intake.commit()
        await asyncio.gather(*sending)
        for peer in peers:
            for n in range(50):
                assert await peer.ack() == f"c{n}"
        assert server.receiver._hub.unacked_bytes == 0


async def test_an_address_in_use_is_named_with_the_setting(tmp_path: Path):
    async with running(tmp_path) as server:
        with pytest.raises(ExceptionGroup) as caught:
            async with running(tmp_path, listen=[f"127.0.0.1:{server.port}"], id="forward/second"):
                pass
        error = caught.value.exceptions[0]
        assert isinstance(error, ConfigError)
        assert error.kind is ErrorKind.ADDRESS_IN_USE
        assert f"127.0.0.1:{server.port}" in str(error)
        assert "forward/second: listen" in str(error)


async def test_more_connections_than_allowed_are_closed_and_counted_and_a_place_is_free_again_afterwards(tmp_path: Path):
    async with running(tmp_path, max_connections_per_address=2) as server:
        async with connected(server.address) as first, connected(server.address) as second:
            for peer in (first, second):
                await peer.send(message_frame(1, chunk="c"))
                assert await peer.ack() == "c"
            async with connected(server.address) as third:
                assert await third.closed() == b""
            assert server.metric("forward_refused_handshakes_total", reason="too_many") == 1
        await until_connections(server, 0)
        async with connected(server.address) as fourth:
            await fourth.send(message_frame(1, chunk="c"))
            assert await fourth.ack() == "c"


async def test_a_silent_connection_is_closed_between_messages_only_by_setting(tmp_path: Path):
    async with running(tmp_path, idle_timeout_s=0.05) as server, connected(server.address) as peer:
        await peer.send(message_frame(1, chunk="c"))
        assert await peer.ack() == "c"
        assert await peer.closed() == b""


async def test_a_connection_that_is_silent_inside_a_message_is_closed(tmp_path: Path):
    async with running(tmp_path, frame_timeout_s=0.05) as server, connected(server.address) as peer:
        await peer.send(packed_frame(entries_of([1]), chunk="c")[:-3])
        assert await peer.closed() == b""
        await until_connections(server, 0)
        assert server.metric("forward_received_torn_connections_total") == 1


async def test_a_stop_acknowledges_what_becomes_durable_and_then_closes(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(tmp_path, intake=intake))
        peer = await stack.enter_async_context(connected(server.address))
        await peer.send(packed_frame(entries_of([1]), chunk="c"))
        await intake.until(lambda one: one.waiting == 1)
        stopping = asyncio.ensure_future(server.receiver.stop(asyncio.get_running_loop().time() + 3600))
        asked = asyncio.ensure_future(peer.ack())
        await asyncio.sleep(0.05)
        assert not asked.done()
        intake.commit()
        assert await asked == "c"
        assert await peer.closed() == b""
        await stopping
        with pytest.raises(OSError, match=r".*"):
            await asyncio.open_connection(*server.address)


@pytest.mark.parametrize("how", ["plain", "TLS", "Unix socket"])
async def test_a_stop_reads_what_had_come_because_a_sender_without_acks_takes_it_for_delivered(tmp_path: Path, how: str):
    certificates = Certificates(tmp_path)
    settings: dict[str, Any] = {"tls": certificates.server()} if how == "TLS" else {"unix_path": tmp_path / "forward.sock"}
    frames = b"".join(message_frame(number) for number in range(1000))
    async with running(tmp_path, **settings) as server:
        with await asyncio.to_thread(_blocking_client, server, how, certificates.ca_file) as client:
            await until_connections(server, 1)
            client.sendall(frames)  # the event loop has no turn to read it before the stop
            await server.receiver.stop(server.receiver._context.clock.monotonic_s() + PATIENCE_S)
        assert server.intake.numbers() == list(range(1000))


async def test_a_stop_does_not_wait_for_a_tls_client_that_never_says_goodbye(tmp_path: Path):
    certificates = Certificates(tmp_path)
    async with running(tmp_path, tls=certificates.server()) as server:
        with await asyncio.to_thread(_blocking_client, server, "TLS", certificates.ca_file) as client:
            client.sendall(message_frame(1))
            await server.intake.until_records(1)
            async with asyncio.timeout(PATIENCE_S):
                await server.receiver.stop(server.receiver._context.clock.monotonic_s() + 3600)


async def test_a_stop_cuts_off_a_sender_that_never_pauses(tmp_path: Path):
    async with running(tmp_path) as server, connected(server.address) as peer:

        async def send_without_end() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await peer.send(message_frame(1) * 100)

        sending = asyncio.ensure_future(send_without_end())
        await server.intake.until_records(100)
        async with asyncio.timeout(PATIENCE_S):
            await server.receiver.stop(server.receiver._context.clock.monotonic_s() + 1.0)
            await sending


async def test_a_stop_ends_at_its_deadline_even_when_the_log_never_answers(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(packed_frame(entries_of([1]), chunk="c"))
        await intake.until(lambda one: one.waiting == 1)
        async with asyncio.timeout(PATIENCE_S):
            await server.receiver.stop(server.receiver._context.clock.monotonic_s() + 0.05)
        assert await peer.closed() == b"", "no ack for what is not durable"


@pytest.mark.parametrize("log_is", ["full", "silent"])
async def test_what_a_stop_could_not_make_durable_is_counted_and_said_where_nobody_can_send_it_again(
    tmp_path: Path, log_is: str, caplog: pytest.LogCaptureFixture
):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(message_frame(1) + message_frame(2) + packed_frame(entries_of([3]), chunk="c"))
        await intake.until(lambda one: one.waiting == 1)
        if log_is == "full":
            intake.admit(False)
            intake.fail(ErrorKind.LOG_FULL)
        await server.receiver.stop(server.receiver._context.clock.monotonic_s() + 0.05)
        intake.fail(ErrorKind.LOG_CLOSED)  # as the writer does when it closes
        await turns()
        assert server.metric("forward_received_lost_records_total") == 2
        assert await peer.closed() == b"", "the chunk is not acknowledged: its sender has it"
    assert "127.0.0.1: 2 records without a chunk are lost" in caplog.text


async def test_what_a_big_message_inflates_to_waits_for_room_in_pieces_and_its_ack_for_all_of_them(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    entries = b"".join(entries_of([n], blob="x" * (1 << 20)) for n in range(80))  # more than two full batches of 32 MiB
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(zstd_frame(entries, chunk="c"))
        asked = asyncio.ensure_future(peer.ack())
        while not asked.done():
            await intake.until(lambda one: one.waiting > 0)
            await turns()
            assert intake.waiting == 1, "it went on although the piece before was not durable"
            assert not asked.done(), "acknowledged before all of it was durable"
            intake.commit()
            await turns()
        assert await asked == "c"
        assert len(intake.arrivals) == 3
        assert intake.numbers() == list(range(80))


async def test_pieces_of_a_big_message_are_kept_when_its_sender_is_gone(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    entries = b"".join(entries_of([n], blob="x" * (1 << 20)) for n in range(40))
    async with running(tmp_path, intake=intake) as server:
        async with connected(server.address) as peer:
            await peer.send(zstd_frame(entries))
            await intake.until(lambda one: one.waiting == 1)
        intake.auto = True
        intake.commit()
        await intake.until_records(40)
        await until_connections(server, 0)
        assert intake.numbers() == list(range(40))


async def test_a_connection_that_waits_for_its_last_ack_is_not_taken_for_a_slow_handshake(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake, handshake_timeout_s=0.05) as server, connected(server.address) as peer:
        await peer.send(message_frame(1, chunk="c") + b"\xc1")
        await intake.until(lambda one: one.waiting == 1)
        await asyncio.sleep(1.2)  # a sweep goes by
        intake.commit()
        assert await peer.ack() == "c"
        assert await peer.closed() == b""
        assert server.metric("forward_refused_handshakes_total", reason="timed_out") == 0


def _blocking_client(server: Running, how: str, ca_file: Path) -> socket.socket:
    """Connect as a client of another process does: what it sends lies in the socket until the receiver reads it."""
    if how == "Unix socket":
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(server.receiver.config.unix_path))
        return client
    client = socket.create_connection(server.address, PATIENCE_S)
    return ssl.create_default_context(cafile=str(ca_file)).wrap_socket(client, server_hostname="localhost") if how == "TLS" else client


async def test_unfinished_messages_do_not_fill_the_memory_the_largest_is_closed_and_the_others_go_on(tmp_path: Path):
    def begun(size_bytes: int) -> bytes:
        return b"\x93\xa1x\x01\x81\xa1k\xdb" + struct.pack(">I", 450_000) + b"x" * size_bytes

    async with (
        running(tmp_path, max_total_unfinished_bytes=500_000) as server,
        connected(server.address) as small,
        connected(server.address) as large,
    ):
        await small.send(begun(200_000))
        await large.send(begun(400_000))
        assert await large.closed() == b""
        await small.send(b"x" * 250_000)
        await server.intake.until_records(1)
        assert server.metric("forward_received_torn_connections_total") == 1
        assert server.metric("cut_connections_total", reason="held_too_much") == 1
