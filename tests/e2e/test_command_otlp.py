"""The real command with the OTLP receivers: each setting once, shown by what a client sees."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import re
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from emp_pipe.receivers.otlp_http import OtlpHttpConfig
from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, rows_in
from tests.support.forward import Certificates
from tests.support.otlp_clients import (
    GOOD,
    H2_GOAWAY,
    H2_PING,
    H2_PREFACE,
    H2_SETTINGS,
    PATIENCE_S,
    PROTOBUF,
    channel,
    export,
    h2_frame,
    h2_frames,
    never,
    post,
    raw,
    said_until_closed,
)
from tests.support.otlp_receiving import METHODS, encoded, request

LARGE = encoded(request("logs", 2000))


class OtlpBench(Bench):
    """A process with one OTLP receiver before its `file` exporter."""

    def __init__(self, directory: Path) -> None:
        self.otlp_port = free_port()
        super().__init__(directory)

    def receive(self, kind: str, settings: str) -> None:
        more = f", {settings}" if settings else ""
        self.write(receivers=f'{{{kind}: {{listen: "127.0.0.1:{self.otlp_port}"{more}}}}}')


@pytest.fixture
def bench(tmp_path: Path) -> OtlpBench:
    return OtlpBench(tmp_path)


# --- OTLP/HTTP, setting by setting ------------------------------------------------------------------


def _token(port: int) -> None:
    assert post(port).status == 401
    assert post(port, Authorization="Bearer wrong").status == 401
    assert post(port, Authorization="Bearer s3cret").status == 200
    assert post(port, Authorization="Bearer next").status == 200


def _client_tokens(port: int) -> None:
    assert post(port).status == 401
    assert post(port, Authorization="Bearer own").status == 200


def _max_request_bytes(port: int) -> None:
    assert post(port, LARGE).status == 413
    assert post(port).status == 200


def _max_total_bytes(port: int) -> None:
    first = raw(port, b"POST /v1/logs HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{")
    until(lambda: post(port, b"\x12" * 900).status == 503, "the second body finds no room")
    first.sendall(b" " * 899)
    assert b"400" in first.recv(1000)
    first.close()
    assert post(port).status == 200


def _request_timeout_s(port: int) -> None:
    slow = raw(port, b"POST /v1/logs HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{")
    assert b" 408 " in said_until_closed(slow)


def _max_head_bytes(port: int) -> None:
    assert post(port, X_Long="x" * 2000).status == 431
    assert post(port).status == 200


def _head_timeout_s(port: int) -> None:
    before_the_default_s = OtlpHttpConfig().head_timeout_s * 0.8
    assert said_until_closed(raw(port, b"POST /v1/logs HTTP/1.1\r\nHost:"), before_the_default_s) == b""


def _idle_timeout_s(port: int) -> None:
    assert said_until_closed(raw(port)) == b""


def _one_connection(port: int) -> None:
    first = raw(port)
    until(lambda: said_until_closed(raw(port)) == b"", "the second is closed")
    first.close()
    until(lambda: _gets_in(port), "the place is free again")


def _gets_in(port: int) -> bool:
    try:
        return post(port).status == 200
    except (OSError, http.client.HTTPException):
        return False


def _cors(port: int) -> None:
    asked = {"Origin": "https://app.example.com", "Access_Control_Request_Method": "POST"}
    answer = post(port, b"", method="OPTIONS", **asked)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, "https://app.example.com")
    assert answer.headers["Access-Control-Max-Age"] == "60"
    assert post(port, Origin="https://other.example.com").headers["Access-Control-Allow-Origin"] is None


HTTP_SETTINGS: dict[str, tuple[str, Callable[[int], None]]] = {
    "token": ("token: [s3cret, next]", _token),
    "client_tokens": ("client_tokens: {ci: own}", _client_tokens),
    "max_request_bytes": ("max_request_bytes: 10000", _max_request_bytes),
    "max_total_bytes": ("max_request_bytes: 1000, max_total_bytes: 1000", _max_total_bytes),
    "request_timeout_s": ("request_timeout_s: 0.1", _request_timeout_s),
    "max_head_bytes": ("max_head_bytes: 1024", _max_head_bytes),
    "head_timeout_s": ("head_timeout_s: 0.1", _head_timeout_s),
    "idle_timeout_s": ("idle_timeout_s: 0.1", _idle_timeout_s),
    "max_connections": ("max_connections: 1", _one_connection),
    "max_connections_per_address": ("max_connections_per_address: 1", _one_connection),
    "cors": ("cors: {allowed_origins: [https://app.example.com], max_age_s: 60}", _cors),
}


@pytest.mark.parametrize("setting", HTTP_SETTINGS)
def test_each_setting_of_otlp_http_does_what_it_says(bench: OtlpBench, setting: str) -> None:
    settings, shows = HTTP_SETTINGS[setting]
    bench.receive("otlp_http", settings)
    with running(*bench.arguments):
        shows(bench.otlp_port)


# --- OTLP/gRPC, setting by setting ------------------------------------------------------------------


def _grpc_token(port: int) -> None:
    with channel(port) as opened:
        assert [export(opened, token=token) for token in ("", "wrong")] == [grpc.StatusCode.UNAUTHENTICATED] * 2
        assert [export(opened, token=token) for token in ("s3cret", "next")] == [grpc.StatusCode.OK] * 2


def _grpc_client_tokens(port: int) -> None:
    with channel(port) as opened:
        assert export(opened) is grpc.StatusCode.UNAUTHENTICATED
        assert export(opened, token="own") is grpc.StatusCode.OK


def _grpc_max_request_bytes(port: int) -> None:
    with channel(port) as opened:
        assert export(opened, LARGE) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert export(opened) is grpc.StatusCode.OK


def _grpc_max_total_bytes(port: int) -> None:
    codes = []

    def send() -> None:
        with channel(port) as opened:
            codes.append(export(opened, LARGE))

    def together() -> bool:
        codes.clear()
        threads = [threading.Thread(target=send) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        return grpc.StatusCode.UNAVAILABLE in codes and grpc.StatusCode.OK in codes

    until(together, "some of many at once are told to come again")


def _grpc_request_timeout_s(port: int) -> None:
    with channel(port) as opened, pytest.raises(grpc.RpcError) as told:
        opened.stream_unary(METHODS["logs"])(never(), timeout=PATIENCE_S)
    assert told.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    assert "did not come whole within 0.2 s" in told.value.details(), "not the client's own deadline"  # type: ignore[attr-defined]


def _grpc_max_concurrent_reads(port: int) -> None:
    longer_than_comes_without_a_turn = encoded(request("logs", 30_000))
    assert len(longer_than_comes_without_a_turn) > 1 << 20
    with channel(port) as opened, channel(port) as other:

        def waits() -> bool:
            holding = opened.stream_unary(METHODS["logs"]).future(never(), timeout=PATIENCE_S)
            begun_s = time.monotonic()
            assert export(other, longer_than_comes_without_a_turn) is grpc.StatusCode.OK
            waited_s = time.monotonic() - begun_s
            assert holding.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "did not come whole" in holding.details(), "not the client's own deadline"
            return waited_s > 0.5

        # Nothing tells when the silent call has begun to be read: the other may come before it.
        until(waits, "it waits for the turn that the silent call holds")


def _grpc_max_streams(port: int) -> None:
    client = raw(port, H2_PREFACE + h2_frame(H2_SETTINGS))
    kind, _, payload = next(h2_frames(client))
    assert kind == H2_SETTINGS
    assert dict(struct.iter_unpack(">HI", payload))[3] == 7  # SETTINGS_MAX_CONCURRENT_STREAMS
    client.close()


def _grpc_max_connections(port: int) -> None:
    with channel(port) as opened:
        assert export(opened) is grpc.StatusCode.OK
        assert said_until_closed(raw(port, H2_PREFACE + h2_frame(H2_SETTINGS))) == b""


def _grpc_keepalive(port: int) -> None:
    client = raw(port, H2_PREFACE + h2_frame(H2_SETTINGS))
    kinds = [kind for kind, _, _ in h2_frames(client)]  # ends when the server closes, because the ping is not answered
    assert H2_PING in kinds
    client.close()


def _grpc_min_ping_interval(port: int) -> None:
    client = raw(port, H2_PREFACE + h2_frame(H2_SETTINGS) + h2_frame(H2_PING, bytes(8)) * 20)
    last = [payload for kind, _, payload in h2_frames(client) if kind == H2_GOAWAY]
    assert b"too_many_pings" in last[-1]
    client.close()


def _grpc_shorter_min_ping_interval(port: int) -> None:
    client = raw(port, H2_PREFACE + h2_frame(H2_SETTINGS))
    frames = h2_frames(client)
    for _ in range(8):
        client.sendall(h2_frame(H2_PING, bytes(8)))
        answered = next((kind for kind, is_ack, _ in frames if kind == H2_GOAWAY or (kind == H2_PING and is_ack)), "the end")
        assert answered == H2_PING
        time.sleep(0.1)  # since the answer, so at least as long between two pings as the server sees them
    client.close()


GRPC_SETTINGS: dict[str, tuple[str, Callable[[int], None]]] = {
    "token": ("token: [s3cret, next]", _grpc_token),
    "client_tokens": ("client_tokens: {ci: own}", _grpc_client_tokens),
    "max_request_bytes": ("max_request_bytes: 10000", _grpc_max_request_bytes),
    "max_total_bytes": (f"max_request_bytes: {len(LARGE)}, max_total_bytes: {len(LARGE)}", _grpc_max_total_bytes),
    "request_timeout_s": ("request_timeout_s: 0.2", _grpc_request_timeout_s),
    "max_concurrent_reads": ("max_concurrent_reads: 1, request_timeout_s: 1.5", _grpc_max_concurrent_reads),
    "max_streams_per_connection": ("max_streams_per_connection: 7", _grpc_max_streams),
    "max_connections": ("max_connections: 1", _grpc_max_connections),
    "max_connections_per_address": ("max_connections_per_address: 1", _grpc_max_connections),
    "keepalive_s and keepalive_timeout_s": ("keepalive_s: 1, keepalive_timeout_s: 1", _grpc_keepalive),
    "min_ping_interval_s": ("min_ping_interval_s: 60", _grpc_min_ping_interval),
    "min_ping_interval_s, shorter": ("min_ping_interval_s: 0.05", _grpc_shorter_min_ping_interval),
}


@pytest.mark.parametrize("setting", GRPC_SETTINGS)
def test_each_setting_of_otlp_grpc_does_what_it_says(bench: OtlpBench, setting: str) -> None:
    settings, shows = GRPC_SETTINGS[setting]
    bench.receive("otlp_grpc", settings)
    with running(*bench.arguments):
        shows(bench.otlp_port)


# --- both -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["otlp_http", "otlp_grpc"])
def test_with_mutual_tls_only_clients_with_a_certificate_get_in(bench: OtlpBench, tmp_path: Path, kind: str) -> None:
    certificates = Certificates(tmp_path)
    cert, key = certificates.issue("server")
    shown = certificates.issue("client", "worker.example")
    bench.receive(kind, f"tls: {{cert_file: {cert}, key_file: {key}, client_ca_file: {certificates.ca_file}}}")
    with running(*bench.arguments):
        for has_certificate in (False, True):
            assert _gets_in_by_tls(kind, bench.otlp_port, certificates, shown if has_certificate else None) is has_certificate


def _gets_in_by_tls(kind: str, port: int, certificates: Certificates, shown: tuple[Path, Path] | None) -> bool:
    if kind == "otlp_http":
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        if shown:
            context.load_cert_chain(*shown)
        connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE_S, context=context)
        try:
            connection.request("POST", "/v1/logs", GOOD, PROTOBUF)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
    cert, key = (path.read_bytes() for path in shown) if shown else (None, None)
    with channel(port, grpc.ssl_channel_credentials(certificates.ca_file.read_bytes(), key, cert)) as opened:
        return export(opened) is grpc.StatusCode.OK


@pytest.mark.parametrize("kind", ["otlp_http", "otlp_grpc"])
def test_records_go_from_the_receiver_to_the_file_and_are_counted(bench: OtlpBench, kind: str) -> None:
    bench.receive(kind, "")
    with running(*bench.arguments) as process:
        assert f"receives: {kind} on 127.0.0.1:{bench.otlp_port}" in "\n".join(process.messages())
        _send(kind, bench.otlp_port)
        until(lambda: len(rows_in(bench.data_dir)) == 3, "three rows")
        assert {row["message"] for row in rows_in(bench.data_dir)} == {"record 0", "record 1", "record 2"}
        ours = {"component": kind, "signal": "logs"}
        until(lambda: bench.metric("emp_pipe_otlp_received_requests_total", code="OK", **ours) == 1, "the request is counted")
        assert bench.metric("emp_pipe_otlp_received_items_total", **ours) == 3
        books = {
            outcome: bench.metric("emp_pipe_receiver_records_total", component=kind, outcome=outcome)
            for outcome in ("received", "appended", "invalid")
        }
        assert books == {"received": 3, "appended": 3, "invalid": 0}
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def _send(kind: str, port: int, token: str = "") -> None:
    if kind == "otlp_http":
        assert post(port, Authorization=f"Bearer {token}").status == 200
    else:
        with channel(port) as opened:
            assert export(opened, token=token) is grpc.StatusCode.OK


@pytest.mark.parametrize("kind", ["otlp_http", "otlp_grpc"])
def test_a_reload_takes_another_token_without_a_restart(bench: OtlpBench, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    bench.receive(kind, f"token: {{file: {file}}}")
    with running(*bench.arguments) as process:
        _send(kind, bench.otlp_port, "first")
        file.write_text("second")
        process.signal(signal.SIGHUP)
        process.wait_for("reload")
        until(lambda: _is_let_in(kind, bench.otlp_port, "second"), "the new token is taken")
        assert not _is_let_in(kind, bench.otlp_port, "first")
        assert "first" not in "\n".join(process.lines)


def _is_let_in(kind: str, port: int, token: str) -> bool:
    with contextlib.suppress(AssertionError):
        _send(kind, port, token)
        return True
    return False


@pytest.mark.parametrize("kind", ["otlp_http", "otlp_grpc"])
def test_a_port_that_is_taken_ends_the_start_with_the_setting_named(bench: OtlpBench, kind: str) -> None:
    with socket.create_server(("127.0.0.1", bench.otlp_port)):
        bench.receive(kind, "")
        result = run(*bench.arguments)
    assert result.returncode == 2
    assert f"{kind}: listen: another process listens on 127.0.0.1:{bench.otlp_port}" in result.stderr


@pytest.mark.parametrize("kind", ["otlp_http", "otlp_grpc"])
def test_a_bomb_takes_the_memory_of_the_limit_and_not_of_what_it_would_be(bench: OtlpBench, kind: str) -> None:
    bench.receive(kind, "")
    zeros = bytes(512 << 20)
    with running(*bench.arguments) as process:
        _send(kind, bench.otlp_port)
        if kind == "otlp_http":
            assert post(bench.otlp_port, gzip.compress(zeros, 1), Content_Encoding="gzip").status == 413
        else:
            with channel(bench.otlp_port) as opened:
                assert export(opened, zeros, compression=grpc.Compression.Gzip) is grpc.StatusCode.RESOURCE_EXHAUSTED
        _send(kind, bench.otlp_port)
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.process.pid}/status").read_text())
        assert peak is not None
        assert int(peak[1]) < 300 << 10


def test_grpc_is_not_imported_where_no_receiver_or_exporter_speaks_it(bench: OtlpBench) -> None:
    bench.receive("otlp_http", "")
    with running(*bench.arguments) as process:
        maps = Path(f"/proc/{process.process.pid}/maps").read_text()
        assert "cygrpc" not in maps
        assert "_http_parser" not in maps, "nor aiohttp"
