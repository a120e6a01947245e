"""TLS at the command's HTTP port: strangers who do not finish it are closed in time and counted, who has no certificate does not get in."""

from __future__ import annotations

import contextlib
import json
import ssl
from pathlib import Path

from tests.support.command import Running, running, until
from tests.support.forward import Certificates
from tests.support.strangers import client_hello, connected, drips, get, health, is_closed, metric


def settings(tmp_path: Path, **http: object) -> Path:
    config = {
        "data_dir": str(tmp_path / "data"),
        "http": {"listen": "127.0.0.1:0", "timeout_s": 1, **http},
        "receivers": {"forward": {"listen": "127.0.0.1:0"}},
        "exporters": {"noop": {}},
    }
    file = tmp_path / "emp.yaml"
    file.write_text(json.dumps(config))
    return file


def port_of(command: Running) -> int:
    return int(health(command).rpartition(":")[2])


def healthy(command: Running, context: ssl.SSLContext) -> bool:
    """Ask; in TLS 1.3 a client learns only by then that it does not get in: by an alert, or by the end."""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        connected(port_of(command)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as peer,
    ):
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return peer.recv(1000).startswith(b"HTTP/1.1 200 ")
    return False


def test_tls_that_drips_or_is_none_is_closed_and_counted_and_who_speaks_it_is_served(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    cert, key = map(str, certificates.issue("server"))
    with running("run", str(settings(tmp_path, tls={"cert_file": cert, "key_file": key}))) as command:
        url = f"https://localhost:{port_of(command)}"
        with connected(port_of(command)) as peer:
            assert drips(peer, client_hello()), "it is still open"
        with connected(port_of(command)) as peer:
            peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert is_closed(peer)
        for reason in ("tls_timed_out", "tls_failed"):

            def reached(reason: str = reason) -> bool:
                text = get(f"{url}/metrics", certificates.ca_file)[1]
                return metric(text, "cut_connections_total", component="http", reason=reason) >= 1

            until(reached, f"{reason} is counted")


def test_where_a_clients_certificate_is_asked_for_nobody_gets_in_without_one(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    cert, key = map(str, certificates.issue("server"))
    tls = {"cert_file": cert, "key_file": key, "client_ca_file": str(certificates.ca_file)}
    with running("run", str(settings(tmp_path, tls=tls))) as command:
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        assert not healthy(command, context)
        context.load_cert_chain(*map(str, certificates.issue("client")))
        assert healthy(command, context)
