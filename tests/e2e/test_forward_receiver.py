"""Promises of the Forward receiver, through real sockets: modes, acks after the commit, framing, duplicates, clocks."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from pathlib import Path
from typing import Any

import msgpack
import pytest

from emp_pipe.errors import ConfigError, ErrorKind
from tests.support.forward import (
    PATIENCE_S,
    RecordingIntake,
    connected,
    entries_of,
    forward_frame,
    gzip_frame,
    message_frame,
    packed_frame,
    running,
    turns,
    until_connections,
    zstd_frame,
)

_MODES = {
    "message": lambda: message_frame(1, chunk="c"),
    "forward": lambda: forward_frame([1], chunk="c"),
    "packed": lambda: packed_frame(entries_of([1]), chunk="c"),
    "gzip": lambda: gzip_frame(entries_of([1]), chunk="c"),
    "zstd": lambda: zstd_frame(entries_of([1]), chunk="c"),
}


@pytest.mark.parametrize("mode", _MODES)
async def test_each_mode_arrives_whole_and_is_acknowledged_with_its_chunk(tmp_path: Path, mode: str):
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(_MODES[mode]())
        assert await peer.ack() == "c"
        (row,) = server.intake.rows()
        assert (row.body, row.attributes["number"], row.tag) == ("record 1", 1, "app.web")


async def test_the_chunk_id_is_echoed_to_the_byte(tmp_path: Path):
    chunk = "TWVzc2FnZQ==\n"  # fluentd's has a line end
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(packed_frame(entries_of([1]), chunk=chunk))
        assert await peer.value() == {b"ack": chunk.encode()}


async def test_gzip_members_one_after_another_are_all_read(tmp_path: Path):
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(gzip_frame(entries_of([1, 2]), chunk="c", members=3))
        assert await peer.ack() == "c"
        assert sorted(server.intake.numbers()) == [1, 1, 1, 2, 2, 2]


async def test_ack_is_sent_only_after_commit(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(packed_frame(entries_of([1]), chunk="first"))
        await intake.until(lambda one: one.waiting == 1)
        asked = asyncio.ensure_future(peer.ack())
        await turns()
        assert not asked.done(), "acknowledged before it was durable"
        intake.commit()
        assert await asked == "first"


async def test_acks_come_in_the_order_of_the_reads_whatever_becomes_durable_first(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(packed_frame(entries_of([1]), chunk="first"))
        await intake.until(lambda one: one.waiting == 1)
        await peer.send(packed_frame(entries_of([2]), chunk="second"))
        await intake.until(lambda one: one.waiting == 2)
        _, later = intake._open.pop()
        later.set_result(None)
        asked = asyncio.ensure_future(peer.ack())
        await turns()
        assert not asked.done()
        intake.commit()
        assert await asked == "first"
        assert await peer.ack() == "second"


async def test_each_ack_is_a_write_of_its_own(tmp_path: Path):
    """Fluent Bit reads once and discards what follows the first value: every read must give exactly one."""
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server:
        writes: list[bytes] = []
        async with connected(server.address) as peer:
            await peer.send(b"".join(packed_frame(entries_of([n]), chunk=f"c{n}") for n in range(20)))
            await intake.until(lambda one: sum(arrival.received for arrival, _ in one._open) == 20)
            (connection,) = server.receiver._hub.connections
            transport = connection._transport
            connection._transport = _Recorder(transport, writes)
            intake.commit()
            acks = [await peer.ack() for _ in range(20)]
        assert acks == [f"c{n}" for n in range(20)]
        assert [msgpack.unpackb(one) for one in writes if one != b"turn"] == [{"ack": f"c{n}"} for n in range(20)]
        together = [pair for pair in itertools.pairwise(writes) if b"turn" not in pair]
        assert together == [], "two acks were written in one turn of the loop"


class _Recorder:
    """A transport that notes each write, and each turn of the event loop after one."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(bytes(data))
        self._transport.write(data)
        asyncio.get_running_loop().call_soon(self._writes.append, b"turn")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def test_frames_split_at_every_byte_arrive_whole(tmp_path: Path):
    data = packed_frame(entries_of([1, 2]), chunk="a") + message_frame(3, chunk="b")
    async with running(tmp_path) as server, connected(server.address) as peer:
        for position in range(len(data)):
            await peer.send(data[position : position + 1])
            await asyncio.sleep(0)
        assert [await peer.ack(), await peer.ack()] == ["a", "b"]
        assert server.intake.numbers() == [1, 2, 3]


async def test_many_frames_in_one_read_make_one_arrival(tmp_path: Path):
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(b"".join(message_frame(n) for n in range(64)))
        await server.intake.until_records(64)
        assert server.intake.numbers() == list(range(64))
        assert len(server.intake.arrivals) <= 2


async def test_a_nil_between_messages_is_a_keepalive(tmp_path: Path):
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(b"\xc0" + message_frame(1) + b"\xc0\xc0" + message_frame(2, chunk="c") + b"\xc0")
        assert await peer.ack() == "c"
        assert server.intake.numbers() == [1, 2]
        assert server.intake.invalid == 0


async def test_json_clients_are_understood_and_acknowledged_in_json(tmp_path: Path):
    async with running(tmp_path) as server, connected(server.address) as peer:
        first = json.dumps(["app.web", 1_760_000_000, {"message": "one", "number": 1}, {"chunk": "c"}])
        await peer.send(f"{first}\n".encode())
        async with asyncio.timeout(PATIENCE_S):
            answer = await peer.reader.readuntil(b"}")
        assert json.loads(answer) == {"ack": "c"}
        assert server.intake.numbers() == [1]


async def test_a_unix_socket_works_and_its_file_goes_when_the_receiver_stops(tmp_path: Path):
    path = tmp_path / "forward.sock"
    async with running(tmp_path, listen=[], unix_path=path) as server:
        assert path.stat().st_mode & 0o777 == 0o660
        async with connected(path) as peer:
            await peer.send(packed_frame(entries_of([1]), chunk="c"))
            assert await peer.ack() == "c"
        assert server.intake.numbers() == [1]
    assert not path.exists()


async def test_a_unix_socket_left_by_a_killed_process_is_replaced_and_a_served_one_is_not(tmp_path: Path):
    path = tmp_path / "forward.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with running(tmp_path, listen=[], unix_path=path):
        with pytest.raises(ExceptionGroup) as caught:
            async with running(tmp_path, listen=[], unix_path=path, id="forward/other"):
                pass
        error = caught.value.exceptions[0]
        assert isinstance(error, ConfigError)
        assert error.kind is ErrorKind.ADDRESS_IN_USE
        async with connected(path) as peer:
            await peer.send(message_frame(1, chunk="c"))
            assert await peer.ack() == "c"


async def test_a_udp_heartbeat_is_answered_with_one_zero_byte(tmp_path: Path):
    async with running(tmp_path) as server:
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                answers.put_nowait(data)

        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Client, remote_addr=server.address)
        transport.sendto(b"not a heartbeat")
        transport.sendto(b"\0")
        async with asyncio.timeout(PATIENCE_S):
            assert await answers.get() == b"\0"
        assert answers.empty(), "anything else is not answered"
        transport.close()


async def test_a_udp_port_that_somebody_else_has_stops_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        with socket.socket() as free_for_tcp:
            free_for_tcp.bind(("127.0.0.1", 0))
            port = free_for_tcp.getsockname()[1]
            taken.bind(("127.0.0.1", port))
        async with running(tmp_path, listen=[f"127.0.0.1:{port}"]) as server, connected(server.address) as peer:
            await peer.send(message_frame(1, chunk="c"))
            assert await peer.ack() == "c"
    assert any("Heartbeats by UDP" in entry.getMessage() and str(port) in entry.getMessage() for entry in caplog.records)


async def test_connections_that_come_and_go_without_a_byte_leave_no_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with running(tmp_path) as server:
        caplog.clear()
        for _ in range(5):
            async with connected(server.address):
                pass
        await until_connections(server, 0)
        assert [entry for entry in caplog.records if entry.name.startswith("emp_pipe")] == []


async def test_a_connection_that_ends_inside_a_frame_is_counted_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with running(tmp_path) as server:
        caplog.clear()
        async with connected(server.address) as peer:
            await peer.send(message_frame(1) + packed_frame(entries_of([2]), chunk="c")[:20])
            await server.intake.until_records(1)
        await until_connections(server, 0)
        assert server.intake.numbers() == [1]
        assert server.intake.dead == []
        assert server.metric("forward_received_torn_connections_total") == 1
        assert [entry for entry in caplog.records if entry.name.startswith("emp_pipe")] == []


async def test_a_peer_that_sends_no_more_still_gets_its_acks(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, intake=intake) as server, connected(server.address) as peer:
        await peer.send(packed_frame(entries_of([1]), chunk="c"))
        await intake.until(lambda one: one.waiting == 1)
        peer.writer.write_eof()
        await turns()
        intake.commit()
        assert await peer.ack() == "c"
        assert await peer.closed() == b"", "and then the connection is closed"


async def test_a_tls_client_on_the_plain_port_gets_a_tls_alert_and_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with running(tmp_path) as server:
        for _ in range(3):
            async with connected(server.address) as peer:
                await peer.send(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"x" * 100)
                assert (await peer.closed())[:1] == b"\x15"
        lines = [entry for entry in caplog.records if "no TLS" in entry.getMessage() and "refused" in entry.getMessage()]
        assert len(lines) == 1
        assert server.metric("forward_refused_handshakes_total", reason="tls_unexpected") == 3
        assert server.intake.dead == []


async def test_an_http_client_is_told_in_http_where_http_is_off(tmp_path: Path):
    async with running(tmp_path, http={"enabled": False}) as server, connected(server.address) as peer:
        await peer.send(b"POST /app.web HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        answer = await peer.closed()
        assert answer.startswith(b"HTTP/1.1 400 ")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head


async def test_a_repeated_chunk_is_acknowledged_and_not_kept_when_duplicates_of_all_peers_are_detected(tmp_path: Path):
    async with running(tmp_path, detect_duplicates="all") as server, connected(server.address) as peer:
        first = packed_frame(entries_of([1, 2]), chunk="a") + message_frame(3) + packed_frame(entries_of([4]), chunk="b")
        await peer.send(first)
        assert [await peer.ack(), await peer.ack()] == ["a", "b"]
        await peer.send(packed_frame(entries_of([1, 2]), chunk="a"))
        assert await peer.ack() == "a"
        assert sorted(server.intake.numbers()) == [1, 2, 3, 4]
        assert sum(arrival.received for arrival in server.intake.duplicates) == 2


async def test_foreign_peers_may_repeat_a_chunk_id_by_default(tmp_path: Path):
    """Fluent Bit's ids are hashes of the content: two equal chunks are two chunks."""
    async with running(tmp_path) as server, connected(server.address) as peer:
        for _ in range(2):
            await peer.send(packed_frame(entries_of([1]), chunk="a"))
            assert await peer.ack() == "a"
        assert server.intake.numbers() == [1, 1]


async def test_a_clock_that_runs_ahead_is_reported_once_and_corrected_by_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with running(tmp_path, correct_clock_skew=True) as server, connected(server.address) as peer:
        now_s = server.receiver._context.clock.unix_nano() // 10**9
        for n in range(3):
            await peer.send(msgpack.packb(["app", now_s + 600, {"number": n}, {"chunk": f"c{n}"}]))
            assert await peer.ack() == f"c{n}"
        lines = [entry.getMessage() for entry in caplog.records if "ahead" in entry.getMessage()]
        assert len(lines) == 1
        assert "127.0.0.1" in lines[0]
        rows = server.intake.rows()
        assert abs(rows[-1].time_unix_nano / 1e9 - now_s) < 60, "later records are corrected"
        server.receiver._hub.skew.publish()
        assert server.metric("forward_clock_ahead_seconds") > 500
