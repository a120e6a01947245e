"""Certificates that change on disk while the command runs: used within seconds at receivers, exporters and the HTTP port, without a signal;
a pair that is half written changes nothing and is named."""

from __future__ import annotations

import json
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support.command import PATIENCE_S, Running, free_port, running, until
from tests.support.forward import Certificates, message_frame
from tests.support.strangers import connected, health, listening

ENDPOINTS = {"forward": "localhost:{}", "otlp_http": "https://localhost:{}", "otlp_grpc": "https://localhost:{}"}


class Fleet:
    """An authority, and what it has issued, in a directory of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        directory = directory / name
        directory.mkdir()
        self.certificates = Certificates(directory)
        self.server = self.certificates.issue("server")
        self.client = self.certificates.issue("client", "gpu-7")
        self.ca_file = self.certificates.ca_file


def put(source: Path, target: Path) -> None:
    """Replace a file in one step, as tools that renew certificates do."""
    beside = target.with_suffix(".new")
    beside.write_bytes(source.read_bytes())
    os.replace(beside, target)


def is_shown(port: int, fleet: Fleet, shows: tuple[Path, Path] | None = None) -> bool:
    """Whether a client that trusts an authority gets a TLS connection that stays."""
    context = ssl.create_default_context(cafile=str(fleet.ca_file))
    if shows is not None:
        context.load_cert_chain(*shows)
    try:
        with connected(port) as raw, context.wrap_socket(raw, server_hostname="localhost") as peer:
            peer.settimeout(0.3)
            try:
                return peer.recv(1) != b""
            except TimeoutError:
                return True
    except (ssl.SSLError, ConnectionError):
        return False


def written(tmp_path: Path, name: str, **parts: Any) -> Path:
    base = {"data_dir": str(tmp_path / name), "http": {"listen": "127.0.0.1:0"}, "exporters": {"file": {}}}
    file = tmp_path / f"{name}.yaml"
    file.write_text(json.dumps(base | parts))
    return file


def test_listeners_show_a_renewed_certificate_and_ask_for_the_new_authority_and_a_half_written_pair_changes_nothing(tmp_path: Path) -> None:
    old, new = Fleet(tmp_path, "old"), Fleet(tmp_path, "new")
    cert, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "client-ca.pem"
    for source, target in ((old.server[0], cert), (old.server[1], key), (old.ca_file, ca)):
        put(source, target)
    tls = {"cert_file": str(cert), "key_file": str(key), "client_ca_file": str(ca)}
    kinds = ("forward", "otlp_http", "otlp_grpc")
    file = written(
        tmp_path,
        "central",
        http={"listen": "127.0.0.1:0", "tls": tls},
        receivers={kind: {"listen": "127.0.0.1:0", "tls": tls} for kind in kinds},
    )
    with running("run", str(file)) as command:
        ports = [listening(command, kind) for kind in kinds] + [int(health(command).rpartition(":")[2])]
        assert all(is_shown(port, old, old.client) for port in ports)
        assert not any(is_shown(port, old) for port in ports), "nobody without a certificate"
        put(new.server[1], key)  # and not yet the certificate

        def is_said() -> bool:
            for port in ports:
                is_shown(port, old, old.client)
            return any("is not the key of" in message and "loaded before stays in use" in message for message in command.messages())

        until(is_said, "the pair that does not fit is named")
        assert all(is_shown(port, old, old.client) for port in ports), "the old pair stays"
        put(new.server[0], cert)
        put(new.ca_file, ca)
        for port in ports:
            until(lambda port=port: is_shown(port, new, new.client), "the new certificate is shown, and the new authority's clients get in")  # type: ignore[misc]
        assert not any(is_shown(port, old, old.client) for port in ports)


def _sent(command: Running, number: int) -> None:
    with socket.create_connection(("127.0.0.1", listening(command, "forward/in")), timeout=PATIENCE_S) as peer:
        peer.sendall(message_frame(number, chunk=f"c{number}"))
        assert msgpack.unpackb(peer.recv(1000)) == {"ack": f"c{number}"}


def _arrived(tmp_path: Path, number: int) -> bool:
    return any(f"record {number}" in path.read_text() for path in (tmp_path / "central").rglob("*.jsonl"))


@pytest.mark.parametrize("kind", list(ENDPOINTS))
def test_an_exporter_trusts_the_new_authority_and_shows_its_renewed_certificate(tmp_path: Path, kind: str) -> None:
    old, new = Fleet(tmp_path, "old"), Fleet(tmp_path, "new")
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    for source, target in ((old.ca_file, ca), (old.client[0], cert), (old.client[1], key)):
        put(source, target)
    port = free_port()

    def central(fleet: Fleet) -> Path:
        tls = {"cert_file": str(fleet.server[0]), "key_file": str(fleet.server[1]), "client_ca_file": str(fleet.ca_file)}
        return written(tmp_path, "central", receivers={kind: {"listen": f"127.0.0.1:{port}", "tls": tls}})

    exporter = {
        "endpoint": ENDPOINTS[kind].format(port),
        "tls": {"ca_file": str(ca), "cert_file": str(cert), "key_file": str(key)},
        "retry_initial_s": 0.1,
        "retry_max_s": 1,
    }
    edge = written(tmp_path, "edge", receivers={"forward/in": {"listen": "127.0.0.1:0"}}, exporters={kind: exporter})
    with running("run", str(edge)) as command:
        with running("run", str(central(old))):
            _sent(command, 111)
            until(lambda: _arrived(tmp_path, 111), "a record arrives")
        with running("run", str(central(new))):
            _sent(command, 222)
            put(new.client[1], key)
            put(new.client[0], cert)
            put(new.ca_file, ca)
            until(lambda: _arrived(tmp_path, 222), "a record arrives by the new certificates", 60.0)
