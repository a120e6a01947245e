"""Promises of the syslog receiver through real sockets: forms, framings, bad input, and who may send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from emp_pipe.errors import ConfigError
from emp_pipe.receivers.syslog import SyslogConfig
from tests.support.forward import Certificates
from tests.support.syslog_receiving import running_syslog, syslog_rows

RFC_5424 = (
    b"<165>1 2026-11-24T17:00:00.003Z gpu-9.example.com worker 4711 ID47 "
    b'[exampleSDID@32473 iut="3" q="a \\"b\\" \\]"][origin ip="192.0.2.1" ip="192.0.2.2" swVersion="2.1"] \xef\xbb\xbfjob done'
)
RFC_3164 = b"<34>Nov 24 17:00:00 gpu-9 sshd[4711]: Accepted publickey for user"


async def test_rfc_5424_is_mapped_by_opentelemetrys_conventions(tmp_path: Path) -> None:
    async with running_syslog(tmp_path) as server:
        server.send_udp(RFC_5424)
        (row,) = await server.rows(1)
    assert (row.body, row.severity, row.level) == ("job done", 10, "notice")
    assert row.time_unix_nano == int(datetime(2026, 11, 24, 17, tzinfo=UTC).timestamp()) * 10**9 + 3_000_000
    assert row.resource == {"host.name": "gpu-9.example.com", "service.name": "worker"}
    assert row.attributes == {
        "syslog.facility": "local4",
        "process.pid": 4711,
        "syslog.msgid": "ID47",
        "syslog.exampleSDID@32473.iut": "3",
        "syslog.exampleSDID@32473.q": 'a "b" ]',
        "client.address": ["192.0.2.1", "192.0.2.2"],
        "service.version": "2.1",
        "network.peer.address": "127.0.0.1",
    }


async def test_rfc_3164_is_mapped_by_the_same_conventions_and_its_year_is_found(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    written = now - timedelta(days=40)
    line = f"<34>{written:%b} {written.day:2} {written:%H:%M:%S} gpu-9 sshd[4711]: Accepted publickey".encode()
    async with running_syslog(tmp_path, timezone="UTC") as server:
        server.send_udp(line)
        (row,) = await server.rows(1)
    assert (row.body, row.severity, row.level) == ("Accepted publickey", 18, "crit")
    assert row.resource == {"host.name": "gpu-9", "service.name": "sshd"}
    assert row.attributes == {"syslog.facility": "auth", "process.pid": 4711, "network.peer.address": "127.0.0.1"}
    assert row.time_unix_nano == int(written.timestamp()) * 10**9


async def test_a_time_without_a_zone_is_of_the_zone_that_is_set(tmp_path: Path) -> None:
    async with running_syslog(tmp_path, timezone="Etc/GMT-5") as server:
        server.send_udp(b"<34>Nov 24 2025 17:00:00 gpu-9 app: x")
        (row,) = await server.rows(1)
    assert row.time_unix_nano == int(datetime(2025, 11, 24, 12, tzinfo=UTC).timestamp()) * 10**9


async def test_a_time_zone_that_nobody_knows_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with running_syslog(tmp_path, timezone="Mars/Olympus"):
            pass
    (error,) = caught.value.exceptions
    assert isinstance(error, ConfigError)
    assert "syslog: timezone" in str(error)


async def test_json_in_a_message_becomes_the_fields_of_the_record(tmp_path: Path) -> None:
    async with running_syslog(tmp_path) as server:
        server.send_udp(b'<14>Nov 24 17:00:00 gpu-9 node[1]: {"message":"done","job_id":"job-7","machine_id":"gpu-9"}')
        (row,) = await server.rows(1)
    assert row.body == "done"
    assert row.attributes["job_id"] == "job-7"
    assert row.resource["machine_id"] == "gpu-9"


async def test_an_xid_of_a_kernel_becomes_an_error_event_and_of_anybody_else_stays_text(tmp_path: Path) -> None:
    text = b"NVRM: Xid (PCI:0000:65:00): 79, pid=1234, name=python3, GPU has fallen off the bus."
    async with running_syslog(tmp_path) as server:
        server.send_udp(b"<4>Nov 24 17:00:00 gpu-9 kernel: " + text, b"<13>Nov 24 17:00:00 gpu-9 app: " + text)
        of_kernel, of_app = sorted(await server.rows(2), key=lambda row: row.resource["service.name"], reverse=True)
    assert (of_kernel.body, of_kernel.severity, of_kernel.resource["host.name"]) == (text.decode(), 17, "gpu-9")
    assert of_kernel.attributes["event_type"] == "error_xid"
    assert (of_kernel.attributes["xid.number"], of_kernel.attributes["xid.pci_address"]) == (79, "0000:65:00")
    assert of_app.severity == 10
    assert "event_type" not in of_app.attributes


FRAMINGS = {
    "octet counting": b"".join(b"%d %s" % (len(one), one) for one in (RFC_5424, RFC_3164, b"<13>two\nlines")),
    "lines": RFC_5424 + b"\n" + RFC_3164 + b"\r\n" + b"<13>two lines\n",
    "NUL bytes": RFC_5424 + b"\0" + RFC_3164 + b"\0" + b"<13>two lines\0",
    "one kind after another": b"%d %s" % (len(RFC_5424), RFC_5424) + RFC_3164 + b"\n" + b"13 <13>two\nlines",
    "a line feed behind a length as well": b"%d %s\n" % (len(RFC_5424), RFC_5424) + RFC_3164 + b"\n<13>two lines\n",
    "no end of the last line": RFC_5424 + b"\n" + RFC_3164 + b"\n<13>two lines",
}


@pytest.mark.parametrize("wire", FRAMINGS.values(), ids=list(FRAMINGS))
@pytest.mark.parametrize("cut_bytes", [1, 7, 1 << 20])
async def test_messages_of_a_stream_are_told_apart_however_it_is_cut(tmp_path: Path, wire: bytes, cut_bytes: int) -> None:
    async with running_syslog(tmp_path) as server:
        _, writer = await server.connect()
        for at in range(0, len(wire), cut_bytes):
            writer.write(wire[at : at + cut_bytes])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()
        rows = await server.rows(3)
    assert [row.body.replace("\n", " ") for row in rows] == ["job done", "Accepted publickey for user", "two lines"]


async def test_a_setting_fixes_the_framing(tmp_path: Path) -> None:
    async with running_syslog(tmp_path, framing="newline") as server:
        _, writer = await server.connect()
        writer.write(b"5 <13>a\n")
        assert [row.body for row in await server.rows(1)] == ["5 <13>a"]
        writer.close()
    async with running_syslog(tmp_path, framing="octet_counting") as server:
        _, writer = await server.connect()
        writer.write(b"3 abc<13>no length\n")
        assert [row.body for row in await server.rows(2)] == ["abc", "no length"]
        assert server.metric("received_misframed_messages_total") == 1
        writer.close()


async def test_only_tls_with_a_certificate_of_the_sender_gets_in_where_that_is_set(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    async with running_syslog(tmp_path, tls=certificates.server(mutual=True), udp=[]) as server:
        reader, writer = await server.connect(ssl=context, server_hostname="localhost")
        with contextlib.suppress(OSError):  # without a certificate: TLS 1.3 says so after the client's first bytes
            writer.write(b"%d %s" % (len(RFC_3164), RFC_3164))
            await asyncio.wait_for(reader.read(), 20)
        context.load_cert_chain(*certificates.issue("gpu-9", "gpu-9.example.com"))
        _, writer = await server.connect(ssl=context, server_hostname="localhost")
        writer.write(b"%d %s" % (len(RFC_5424), RFC_5424))
        assert [row.body for row in await server.rows(1)] == ["job done"]
        writer.close()


async def test_without_tls_nothing_gets_in_where_tls_is_set(tmp_path: Path) -> None:
    async with running_syslog(tmp_path, tls=Certificates(tmp_path).server(), udp=[]) as server:
        reader, writer = await server.connect()
        writer.write(RFC_3164 + b"\n")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert server.intake.arrivals == []
        cut = server.metrics.registry.get_sample_value("emp_pipe_cut_connections_total", {"component": "syslog", "reason": "tls_failed"})
        assert cut == 1


async def test_a_message_over_the_limit_comes_in_marked_parts_that_say_whose_they_are(tmp_path: Path) -> None:
    text = "日本語" * 1000
    message = f"<13>Nov 24 17:00:00 gpu-9 app[7]: {text}".encode()
    async with running_syslog(tmp_path, max_message_bytes=1024) as server:
        _, writer = await server.connect()
        writer.write(message + b"\n<13>Nov 24 17:00:00 gpu-9 app[7]: next\n")
        writer.close()
        server.send_udp(message)
        await server.until(lambda: len([row for row in syslog_rows(server.intake) if row.body]) >= 19, "both messages' parts")
        rows = syslog_rows(server.intake)
    assert {row.resource["host.name"] for row in rows} == {"gpu-9"}
    assert {row.attributes["process.pid"] for row in rows} == {7}
    parts = [row for row in rows if "line.part" in row.attributes]
    assert "".join(row.body for row in parts) == text * 2, "nothing is cut off, and no character is cut"
    assert [row.body for row in rows if "line.part" not in row.attributes] == ["next"]
    assert sum(1 for row in parts if not row.attributes["line.continues"]) == 2


BAD = {
    "no priority": (b"just words", "just words", {}),
    "a priority out of range": (b"<999>x", "<999>x", {}),
    "an unclosed priority": (b"<13 x", "<13 x", {}),
    "bytes that are not UTF-8": (b"<13>caf\xe9", "caf�", {"syslog.facility": "user"}),
    "a torn header": (b"<13>1 2026-11-24T17:00:00Z gpu-9", "", {"syslog.facility": "user"}),
    "structured data without an end": (b'<13>1 - - - - - [a b="c', '[a b="c', {"syslog.facility": "user"}),
    "a time that does not exist": (b"<13>1 2026-02-30T00:00:00Z h a - - - x", "x", {"syslog.timestamp": "2026-02-30T00:00:00Z"}),
    "NUL bytes at the end": (b"<13>x\0\0", "x", {"syslog.facility": "user"}),
    "a NUL byte inside": (b"<13>x\0y", "x\0y", {"syslog.facility": "user"}),
}


@pytest.mark.parametrize(("datagram", "body", "attributes"), BAD.values(), ids=list(BAD))
async def test_bad_input_among_good_is_kept_as_it_is(tmp_path: Path, datagram: bytes, body: str, attributes: dict[str, Any]) -> None:
    async with running_syslog(tmp_path) as server:
        server.send_udp(RFC_5424, datagram, RFC_5424)
        rows = await server.rows(3)
        assert sum(arrival.received for arrival in server.intake.arrivals) == 3
    (row,) = [row for row in rows if row.body != "job done"]
    assert row.body == body
    assert attributes.items() <= row.attributes.items()


async def test_datagrams_with_nothing_in_them_are_counted_and_are_no_records(tmp_path: Path) -> None:
    async with running_syslog(tmp_path) as server:
        server.send_udp(b"", b"\n", b"\0", b"<13>x")
        await server.rows(1)
        await server.until(lambda: server.metric("received_blank_messages_total") == 3, "the blank ones are counted")


async def test_a_connection_that_sends_garbage_costs_itself_only(tmp_path: Path) -> None:
    async with running_syslog(tmp_path) as server:
        _, bad = await server.connect()
        bad.write(b"999999999 <13>" + bytes(range(256)) * 4000)
        await bad.drain()
        _, good = await server.connect()
        good.write(RFC_3164 + b"\n")
        await server.until(lambda: any(row.body.startswith("Accepted") for row in syslog_rows(server.intake)), "the good one")
        good.close()
        bad.close()
        await server.until(lambda: server.metric("received_torn_messages_total") == 1, "the torn one is counted")


async def test_a_message_that_ends_with_its_connection_is_kept_and_counted(tmp_path: Path) -> None:
    async with running_syslog(tmp_path) as server:
        _, writer = await server.connect()
        writer.write(b"100 <13>torn")
        writer.close()
        assert [row.body for row in await server.rows(1)] == ["torn"]
        assert server.metric("received_torn_messages_total") == 1


async def test_a_message_that_does_not_go_on_is_taken_for_whole(tmp_path: Path) -> None:
    async with running_syslog(tmp_path, message_timeout_s=0.1) as server:
        _, writer = await server.connect()
        writer.write(b"<13>no line feed follows")
        assert [row.body for row in await server.rows(1)] == ["no line feed follows"]
        writer.close()


async def test_a_silent_connection_is_closed_where_that_is_set(tmp_path: Path) -> None:
    async with running_syslog(tmp_path, idle_timeout_s=0.1) as server:
        reader, _ = await server.connect()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 20)


async def test_addresses_that_are_not_named_may_not_send(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running_syslog(tmp_path, allowed_peers=["192.0.2.0/24"]) as server:
        server.send_udp(RFC_3164, RFC_3164)
        reader, writer = await server.connect()
        writer.write(RFC_3164)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 20)
        await server.until(lambda: server.metric("refused_messages_total", what="datagram") == 2, "both datagrams are counted")
        assert server.metric("refused_messages_total", what="connection") == 1
        assert server.intake.arrivals == []
    assert "127.0.0.1: datagram refused; name its network in `allowed_peers`" in caplog.text
    async with running_syslog(tmp_path, allowed_peers=["127.0.0.0/8"]) as server:
        server.send_udp(RFC_3164)
        await server.rows(1)


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "0.0.0.0:5140"},
        {"udp": "*:5140"},
        {"listen": [], "udp": []},
        {"allowed_peers": ["no network"]},
        {"max_message_bytes": 10},
    ],
)
def test_a_configuration_that_would_let_strangers_in_or_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SyslogConfig(**settings)
    SyslogConfig(listen="0.0.0.0:5140", udp="*:5140", allowed_peers=["10.0.0.0/8"])
    SyslogConfig(listen="0.0.0.0:5140", udp="*:5140", allow_unauthenticated=True)


def test_a_certificate_guards_no_datagrams() -> None:
    tls = {"cert_file": "c", "key_file": "k", "client_ca_file": "a"}
    with pytest.raises(ValidationError, match="`udp`: other machines reach"):
        SyslogConfig(listen="*:6514", udp="*:5140", tls=tls)
    SyslogConfig(listen="*:6514", tls=tls)


async def test_a_stop_reads_what_has_come(tmp_path: Path) -> None:
    async with running_syslog(tmp_path) as server:
        with socket.create_connection(server.receiver.addresses[0]) as sender:
            await server.until(lambda: server.metric("open_connections") == 1, "it is accepted")
            sender.sendall(b"<13>a\n<13>b\n<13>c")
            server.send_udp(b"<13>d")
            await server.receiver.stop(asyncio.get_running_loop().time() + 5)
        assert sorted(row.body for row in syslog_rows(server.intake)) == ["a", "b", "c", "d"]


async def test_a_clock_that_runs_ahead_is_said_with_its_address(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=3)
    async with running_syslog(tmp_path) as server:
        server.send_udp(f"<13>1 {ahead:%Y-%m-%dT%H:%M:%SZ} h a - - - x".encode())
        (row,) = await server.rows(1)
        assert row.time_unix_nano == int(ahead.timestamp()) * 10**9, "the time stays as it was written"
        assert server.metric("clock_ahead_seconds") > 10_000
    assert "the clock of 127.0.0.1 is" in caplog.text


async def test_places_are_limited_and_counted(tmp_path: Path) -> None:
    async with running_syslog(tmp_path, max_connections=1) as server:
        _, first = await server.connect()
        await server.until(lambda: server.metric("open_connections") == 1, "the first one has its place")
        reader, _ = await server.connect()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 20)
        cut = server.metrics.registry.get_sample_value("emp_pipe_cut_connections_total", {"component": "syslog", "reason": "too_many"})
        assert cut == 1
        first.close()
