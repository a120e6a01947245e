"""Each limit that a listener of the command has for strangers: who meets it is closed, counted by reason, and good clients go on."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support.command import PATIENCE_S, Running, running
from tests.support.forward import Certificates, entries_of, message_frame, packed_frame
from tests.support.strangers import HTTP_HEAD, client_hello, connected, counted, drips, get, health, is_closed, listening, several

KINDS = ("forward", "otlp_http", "http")
CONNECTIONS = 5


def settings(tmp_path: Path, **of_kind: dict[str, Any]) -> Path:
    config = {
        "data_dir": str(tmp_path / "data"),
        "http": {"listen": "127.0.0.1:0", **of_kind.get("http", {})},
        "receivers": {
            "forward": {"listen": "127.0.0.1:0", **of_kind.get("forward", {})},
            "otlp_http": {"listen": "127.0.0.1:0", **of_kind.get("otlp_http", {})},
        },
        "exporters": {"noop": {}},
    }
    file = tmp_path / "emp.yaml"
    file.write_text(json.dumps(config))
    return file


def port_of(command: Running, kind: str) -> int:
    return int(health(command).rpartition(":")[2]) if kind == "http" else listening(command, kind)


def is_served(command: Running, kind: str) -> None:
    """A good client, on another connection, gets what it wants."""
    if kind == "forward":
        with connected(port_of(command, kind)) as peer:
            peer.sendall(message_frame(1, chunk="good"))
            assert msgpack.unpackb(peer.recv(1000)) == {"ack": "good"}
    elif kind == "otlp_http":
        with connected(port_of(command, kind)) as peer:
            peer.sendall(HTTP_HEAD + b"Content-Length: 0\r\n\r\n")
            assert peer.recv(1000).startswith(b"HTTP/1.1 200 ")
    else:
        assert get(f"{health(command)}/healthz")[0] == 200


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A command with short times and small sizes."""
    directory = tmp_path_factory.mktemp("strict")
    file = settings(
        directory,
        forward={"shared_key": {"env": "KEY"}, "handshake_timeout_s": 1, "frame_timeout_s": 1},
        otlp_http={"head_timeout_s": 2.5, "request_timeout_s": 2, "max_head_bytes": 1024, "max_request_bytes": 1000},
        http={"timeout_s": 1, "max_head_bytes": 1024},
    )
    with running("run", str(file), KEY="k") as command:
        yield command


@pytest.fixture(scope="module")
def open_strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A Forward receiver without a key, with short times and small sizes."""
    file = settings(tmp_path_factory.mktemp("open"), forward={"frame_timeout_s": 1, "max_frame_bytes": 2000})
    with running("run", str(file)) as command:
        yield command


@pytest.mark.parametrize(("limit", "reason"), [("max_connections", "too_many"), ("max_connections_per_address", "too_many_from_address")])
@pytest.mark.parametrize("kind", KINDS)
def test_who_comes_when_all_places_are_taken_is_closed_and_counted_and_a_place_that_is_free_again_is_given(
    tmp_path: Path, kind: str, limit: str, reason: str
) -> None:
    file = settings(tmp_path, **{kind: {limit: CONNECTIONS}})
    with running("run", str(file)) as command:
        with several(port_of(command, kind), CONNECTIONS), connected(port_of(command, kind)) as one_more:
            assert is_closed(one_more)
            if kind != "http":
                counted(command, "cut_connections_total", component=kind, reason=reason)
                command.wait_for(limit)
        if kind == "http":
            counted(command, "cut_connections_total", component=kind, reason=reason)
        is_served(command, kind)


@pytest.fixture(scope="module")
def speaks_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Certificates]]:
    directory = tmp_path_factory.mktemp("tls")
    certificates = Certificates(directory)
    cert, key = map(str, certificates.issue("server"))
    tls = {"cert_file": cert, "key_file": key}
    file = settings(directory, forward={"tls": tls, "handshake_timeout_s": 1}, otlp_http={"tls": tls, "head_timeout_s": 1})
    with running("run", str(file)) as command:
        yield command, certificates


@pytest.mark.parametrize("kind", ["forward", "otlp_http"])
def test_a_tls_handshake_that_drips_is_closed_after_its_time_and_counted(speaks_tls: tuple[Running, Certificates], kind: str) -> None:
    command, certificates = speaks_tls
    with connected(port_of(command, kind)) as peer:
        assert drips(peer, client_hello()), "it is still open"
    counted(command, "cut_connections_total", component=kind, reason="tls_timed_out")
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    with connected(port_of(command, kind)) as raw, context.wrap_socket(raw, server_hostname="localhost") as peer:
        assert peer.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize("kind", ["forward", "otlp_http"])
def test_what_is_no_tls_handshake_is_closed_and_counted(speaks_tls: tuple[Running, Certificates], kind: str) -> None:
    command, _ = speaks_tls
    with connected(port_of(command, kind)) as peer:
        peer.sendall(b"\x16\x03\x01\x00\x05hello")
        assert is_closed(peer)
    counted(command, "cut_connections_total", component=kind, reason="tls_failed")


def test_older_tls_than_1_2_is_refused(speaks_tls: tuple[Running, Certificates]) -> None:
    command, certificates = speaks_tls
    for kind in ("forward", "otlp_http"):
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # that is why it is refused
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with connected(port_of(command, kind)) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(raw, server_hostname="localhost")


def test_a_key_handshake_that_drips_is_closed_after_its_time_and_counted(strict: Running) -> None:
    with connected(port_of(strict, "forward")) as peer:
        peer.recv(1000)
        assert drips(peer, b"\x96\xda\x40\x00" + b"a" * 1000), "it is still open"
    counted(strict, "forward_refused_handshakes_total", component="forward", reason="timed_out")


def test_a_key_handshake_without_end_is_closed_and_counted(strict: Running) -> None:
    with connected(port_of(strict, "forward")) as peer:
        peer.recv(1000)
        peer.sendall(b"\x96\xdb" + struct.pack(">I", 1 << 30) + b"a" * 70_000)
        assert is_closed(peer)
    counted(strict, "forward_refused_handshakes_total", component="forward", reason="malformed")


@pytest.mark.parametrize("kind", ["otlp_http", "http"])
def test_headers_that_drip_are_closed_after_their_time_and_counted(strict: Running, kind: str) -> None:
    with connected(port_of(strict, kind)) as peer:
        assert drips(peer, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 1000), "it is still open"
    counted(strict, "cut_connections_total", component=kind, reason="head_timed_out")
    is_served(strict, kind)


@pytest.mark.parametrize("kind", ["otlp_http", "http"])
def test_headers_over_their_limit_are_refused(strict: Running, kind: str) -> None:
    with connected(port_of(strict, kind)) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 2000 + b"\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 431 ")
        assert is_closed(peer)
    if kind == "http":
        counted(strict, "cut_connections_total", component="http", reason="head_too_large")
    else:
        counted(strict, "otlp_received_requests_total", component="otlp_http", code="RESOURCE_EXHAUSTED")


def test_a_body_that_does_not_come_whole_is_refused_after_its_time_and_counted(strict: Running) -> None:
    with connected(port_of(strict, "otlp_http")) as peer:
        peer.sendall(HTTP_HEAD + b"Content-Length: 500\r\n\r\n" + b"a" * 10)
        assert peer.recv(100).startswith(b"HTTP/1.1 408 ")
    counted(strict, "cut_connections_total", component="otlp_http", reason="request_timed_out")


@pytest.mark.parametrize("length", [b"Content-Length: 1001\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"a" * 1001])
def test_a_body_over_its_limit_is_refused_and_counted(strict: Running, length: bytes) -> None:
    with connected(port_of(strict, "otlp_http")) as peer:
        peer.sendall(HTTP_HEAD + length)
        assert peer.recv(100).startswith(b"HTTP/1.1 413 ")
    counted(strict, "otlp_received_requests_total", component="otlp_http", code="RESOURCE_EXHAUSTED")


def test_the_http_port_takes_no_body(strict: Running) -> None:
    with connected(port_of(strict, "http")) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 413 ")
    counted(strict, "cut_connections_total", component="http", reason="body_not_taken")


def test_what_is_no_request_is_counted_at_the_http_port(strict: Running) -> None:
    with connected(port_of(strict, "http")) as peer:
        peer.sendall(b"hello\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 400 ")
    counted(strict, "cut_connections_total", component="http", reason="malformed")


def test_a_message_that_stops_in_its_middle_is_closed_after_its_time_and_counted(open_strict: Running) -> None:
    with connected(port_of(open_strict, "forward")) as peer:
        peer.sendall(packed_frame(entries_of(range(10)), chunk="c")[:-20])
        assert is_closed(peer)
    counted(open_strict, "cut_connections_total", component="forward", reason="silent")


def test_a_message_over_its_limit_is_closed_and_counted(open_strict: Running) -> None:
    with connected(port_of(open_strict, "forward")) as peer:
        peer.sendall(packed_frame(entries_of(range(100)), chunk="c"))
        assert is_closed(peer)
    counted(open_strict, "forward_received_unreadable_connections_total", component="forward")


def _sends_and_never_reads_until_closed(port: int, data: bytes) -> socket.socket:
    """Send and never read, until the server has closed."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.settimeout(PATIENCE_S)
    peer.connect(("127.0.0.1", port))
    at = 0
    try:
        while True:
            at = (at + peer.send(data[at:])) % len(data)
    except ConnectionError:
        return peer


@pytest.mark.parametrize("kind", KINDS)
def test_who_sends_and_does_not_take_what_is_answered_is_closed_and_counted(strict: Running, open_strict: Running, kind: str) -> None:
    command = open_strict if kind == "forward" else strict
    requests = {
        "forward": b"".join(message_frame(number, chunk=f"{number:01500}") for number in range(1000)),
        "otlp_http": b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,  # shorter than its answer: answers get stuck first
        "http": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,
    }
    with _sends_and_never_reads_until_closed(port_of(command, kind), requests[kind]):
        counted(command, "cut_connections_total", component=kind, reason="answers_unread")
    is_served(command, kind if kind != "forward" else "http")
