"""Each limit that the command's OTLP/gRPC port has for strangers: who meets it is closed or refused, counted, and good clients go on."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.command import Running, running, until
from tests.support.forward import Certificates
from tests.support.otlp_clients import GOOD, PATIENCE_S, channel, export
from tests.support.otlp_receiving import METHODS
from tests.support.strangers import client_hello, connected, counted, drips, is_closed, listening, several

CONNECTIONS = 5


def settings(tmp_path: Path, **grpc: object) -> Path:
    config = {
        "data_dir": str(tmp_path / "data"),
        "http": {"listen": "127.0.0.1:0"},
        "receivers": {"otlp_grpc": {"listen": "127.0.0.1:0", **grpc}},
        "exporters": {"noop": {}},
    }
    file = tmp_path / "emp.yaml"
    file.write_text(json.dumps(config))
    return file


def is_served(command: Running) -> bool:
    with channel(listening(command, "otlp_grpc")) as client:
        return export(client) is grpc.StatusCode.OK


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A command with short times and small sizes."""
    limits = {"head_timeout_s": 1, "request_timeout_s": 2, "max_request_bytes": 1000, "max_streams_per_connection": 3}
    with running("run", str(settings(tmp_path_factory.mktemp("strict"), **limits))) as command:
        yield command


@pytest.mark.parametrize(("limit", "reason"), [("max_connections", "too_many"), ("max_connections_per_address", "too_many_from_address")])
def test_who_comes_when_all_places_are_taken_is_closed_and_counted_and_a_place_that_is_free_again_is_given(
    tmp_path: Path, limit: str, reason: str
) -> None:
    with running("run", str(settings(tmp_path, **{limit: CONNECTIONS}))) as command:
        port = listening(command, "otlp_grpc")
        with several(port, CONNECTIONS), connected(port) as one_more:
            assert is_closed(one_more)
            counted(command, "cut_connections_total", component="otlp_grpc", reason=reason)
            command.wait_for(limit)
        until(lambda: is_served(command), "a good client gets a place")


def test_a_tls_handshake_that_drips_and_one_that_is_none_are_closed_and_counted(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    cert, key = map(str, certificates.issue("server"))
    file = settings(tmp_path, tls={"cert_file": cert, "key_file": key}, head_timeout_s=1)
    with running("run", str(file)) as command:
        port = listening(command, "otlp_grpc")
        with connected(port) as peer:
            assert drips(peer, client_hello()), "it is still open"
        counted(command, "cut_connections_total", component="otlp_grpc", reason="tls_timed_out")
        with connected(port) as peer:
            peer.sendall(b"\x16\x03\x01\x00\x05hello")
            assert is_closed(peer)
        counted(command, "cut_connections_total", component="otlp_grpc", reason="tls_failed")
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        context.set_alpn_protocols(["h2"])
        with connected(port) as raw, context.wrap_socket(raw, server_hostname="localhost") as peer:
            assert peer.selected_alpn_protocol() == "h2"


def test_first_frames_that_drip_are_closed_after_their_time_and_counted(strict: Running) -> None:
    with connected(listening(strict, "otlp_grpc")) as peer:
        assert drips(peer, b"PRI * HTTP/2.0\r\n\r\nSM", pause_s=0.5), "it is still open"
    counted(strict, "cut_connections_total", component="otlp_grpc", reason="head_timed_out")
    assert is_served(strict)


def test_headers_over_their_limit_are_refused_and_counted(strict: Running) -> None:
    with channel(listening(strict, "otlp_grpc")) as client:
        with pytest.raises(grpc.RpcError) as told:
            client.unary_unary(METHODS["logs"])(GOOD, timeout=PATIENCE_S, metadata=(("x", "a" * 20_000),))
        assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert export(client) is grpc.StatusCode.OK
    counted(strict, "otlp_received_requests_total", component="otlp_grpc", signal="", code="RESOURCE_EXHAUSTED")


def test_a_message_over_its_limit_is_refused_and_counted(strict: Running) -> None:
    with channel(listening(strict, "otlp_grpc")) as client:
        assert export(client, bytes(1001)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert export(client) is grpc.StatusCode.OK
    counted(strict, "otlp_received_requests_total", component="otlp_grpc", signal="logs", code="RESOURCE_EXHAUSTED")


def test_more_calls_at_once_than_a_connection_may_have_wait_and_one_that_does_not_come_whole_ends(strict: Running) -> None:
    leave = threading.Event()

    def unfinished() -> Iterator[bytes]:
        leave.wait(PATIENCE_S)
        yield GOOD

    with channel(listening(strict, "otlp_grpc")) as client:
        held = [client.stream_unary(METHODS["logs"]).future(unfinished(), timeout=PATIENCE_S) for _ in range(3)]
        try:
            assert export(client) is grpc.StatusCode.OK, "the call that has to wait never gets its turn"
            assert {call.code() for call in held} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        finally:
            leave.set()
    counted(strict, "otlp_received_requests_total", component="otlp_grpc", code="DEADLINE_EXCEEDED")
