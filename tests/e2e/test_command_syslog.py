"""The real command with the syslog receiver: each setting once, shown by what a sender or the file of records sees."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, rows_in
from tests.support.forward import Certificates

LINE = b"<34>Nov 24 2025 17:00:00 gpu-9 sshd[4711]: one"


class SyslogBench(Bench):
    """A process with one syslog receiver before its `file` exporter."""

    def __init__(self, directory: Path) -> None:
        self.syslog_port = free_port()
        super().__init__(directory)

    def receive(self, settings: str = "") -> None:
        more = f", {settings}" if settings else ""
        address = f"127.0.0.1:{self.syslog_port}"
        self.write(receivers=f'{{syslog: {{listen: "{address}", udp: "{address}"{more}}}}}')

    def bodies(self) -> list[str]:
        return [str(row.get("message", "")) for row in rows_in(self.data_dir)]


@pytest.fixture
def bench(tmp_path: Path) -> SyslogBench:
    return SyslogBench(tmp_path)


def tcp(port: int, *pieces: bytes) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), timeout=20)
    for piece in pieces:
        connected.sendall(piece)
    return connected


def udp(port: int, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for datagram in datagrams:
            sender.sendto(datagram, ("127.0.0.1", port))


def is_closed(connected: socket.socket) -> bool:
    try:
        return connected.recv(1) == b""
    except ConnectionError:
        return True


def test_messages_by_udp_and_tcp_reach_the_destination(bench: SyslogBench) -> None:
    bench.receive()
    with running(*bench.arguments) as command:
        udp(bench.syslog_port, LINE)
        tcp(bench.syslog_port, b"%d %s" % (len(LINE), LINE)).close()
        until(lambda: bench.bodies() == ["one", "one"], "both records in the file")
        command.process.terminate()
        assert command.wait() == 0


@pytest.mark.skipif(shutil.which("logger") is None, reason="there is no logger of util-linux here")
@pytest.mark.parametrize("options", [("--udp", "--rfc3164"), ("--udp", "--rfc5424"), ("--tcp", "--rfc5424", "--octet-count"), ("--tcp",)])
def test_what_logger_sends_is_read(bench: SyslogBench, options: tuple[str, ...]) -> None:
    bench.receive()
    with running(*bench.arguments):
        command = ["logger", "--server", "127.0.0.1", "--port", str(bench.syslog_port), *options, "--priority", "daemon.warning", "--tag"]
        subprocess.run([*command, "trainer", "--id=7", "said by logger"], check=True, timeout=20)
        until(lambda: bench.bodies() == ["said by logger"], "the record")
        (row,) = rows_in(bench.data_dir)
        assert row["level"] == "warn"
        assert row["syslog.facility"] == "daemon"
        assert row["process.pid"] == 7


def _framing(bench: SyslogBench) -> None:
    tcp(bench.syslog_port, b"5 <13>a\n").close()
    until(lambda: bench.bodies() == ["5 <13>a"], "a line is a message whatever it begins with")


def _max_message_bytes(bench: SyslogBench) -> None:
    udp(bench.syslog_port, b"<13>" + b"x" * 1000)
    until(lambda: len("".join(bench.bodies())) == 1000 and len(bench.bodies()) == 3, "three parts")


def _timezone(bench: SyslogBench) -> None:
    udp(bench.syslog_port, LINE)
    until(lambda: [row["timestamp"][:19] for row in rows_in(bench.data_dir)] == ["2025-11-24T12:00:00"], "the time of that zone")


def _allowed_peers(bench: SyslogBench) -> None:
    udp(bench.syslog_port, LINE)
    assert is_closed(tcp(bench.syslog_port))
    until(lambda: bench.metric("emp_pipe_syslog_refused_messages_total", what="datagram") == 1, "the datagram is counted")
    assert bench.bodies() == []


def _max_unstored_bytes(bench: SyslogBench) -> None:
    tcp(bench.syslog_port, (LINE + b"\n") * 1000).close()
    until(lambda: len(bench.bodies()) == 1000, "all of them, a few at a time")


def _one_connection(bench: SyslogBench) -> None:
    first = tcp(bench.syslog_port, LINE + b"\n")
    until(lambda: bench.bodies() == ["one"], "the first one has its place")
    assert is_closed(tcp(bench.syslog_port))
    first.close()


def _message_timeout_s(bench: SyslogBench) -> None:
    kept = tcp(bench.syslog_port, LINE)
    until(lambda: bench.bodies() == ["one"], "a message without an end")
    kept.close()


def _idle_timeout_s(bench: SyslogBench) -> None:
    assert is_closed(tcp(bench.syslog_port))


def _wrong_handshakes(bench: SyslogBench) -> None:
    for _ in range(8):
        is_closed(tcp(bench.syslog_port, b"this is no TLS handshake"))
    until(lambda: is_closed(tcp(bench.syslog_port)), "it is turned away")
    until(lambda: bench.metric("emp_pipe_cut_connections_total", component="syslog", reason="refused_too_often") >= 1, "it is counted")


SETTINGS: dict[str, tuple[str, Callable[[SyslogBench], None]]] = {
    "framing": ("framing: newline", _framing),
    "max_message_bytes": ("max_message_bytes: 480", _max_message_bytes),
    "timezone": ("timezone: Etc/GMT-5", _timezone),
    "allowed_peers": ("allowed_peers: [192.0.2.0/24]", _allowed_peers),
    "max_unstored_bytes": ("max_unstored_bytes: 1000", _max_unstored_bytes),
    "max_connections": ("max_connections: 1", _one_connection),
    "max_connections_per_address": ("max_connections_per_address: 1", _one_connection),
    "message_timeout_s": ("message_timeout_s: 0.1", _message_timeout_s),
    "idle_timeout_s": ("idle_timeout_s: 0.1", _idle_timeout_s),
}


@pytest.mark.parametrize(("setting", "shown_by"), SETTINGS.values(), ids=list(SETTINGS))
def test_a_setting_does_what_it_says(bench: SyslogBench, setting: str, shown_by: Callable[[SyslogBench], None]) -> None:
    bench.receive(setting)
    printed = run("run", str(bench.file), "--print-config", "--data-dir", str(bench.data_dir))
    assert setting.partition(":")[0] + ":" in printed.stdout
    with running(*bench.arguments):
        shown_by(bench)


def test_the_kernel_is_asked_for_the_buffer_that_is_set(bench: SyslogBench) -> None:
    bench.receive("udp_buffer_bytes: 1000000000")
    with running(*bench.arguments) as command:
        command.wait_for("bytes of datagrams, not the 1,000,000,000 of `udp_buffer_bytes`")
        udp(bench.syslog_port, LINE)
        until(lambda: bench.bodies() == ["one"], "the record")


def test_tls_and_its_limits(bench: SyslogBench, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    cert, key = certificates.issue("server")
    bench.receive(f"tls: {{cert_file: {cert}, key_file: {key}}}, handshake_timeout_s: 0.5, max_refusals_per_address_per_s: 0.5")
    with running(*bench.arguments):
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        with context.wrap_socket(tcp(bench.syslog_port), server_hostname="localhost") as sender:
            sender.sendall(b"%d %s" % (len(LINE), LINE))
            until(lambda: bench.bodies() == ["one"], "the record")
        assert is_closed(tcp(bench.syslog_port)), "a handshake that does not begin is closed after its time"
        until(lambda: bench.metric("emp_pipe_cut_connections_total", component="syslog", reason="tls_timed_out") == 1, "and counted")
        _wrong_handshakes(bench)


def test_with_nothing_set_it_listens_on_loopback(bench: SyslogBench) -> None:
    bench.write(receivers="{syslog: {}}")
    printed = run("run", str(bench.file), "--print-config", "--data-dir", str(bench.data_dir))
    assert printed.returncode == 0
    assert "5140" in printed.stdout
    bench.write(receivers='{syslog: {listen: "*:5140"}}')
    refused = run("validate", str(bench.file))
    assert refused.returncode != 0
    assert "allowed_peers" in refused.stdout + refused.stderr
    bench.write(receivers=json.dumps({"syslog": {"listen": f"*:{bench.syslog_port}", "udp": [], "allow_unauthenticated": True}}))
    with running(*bench.arguments):
        tcp(bench.syslog_port, LINE + b"\n").close()
        until(lambda: bench.bodies() == ["one"], "the record")
