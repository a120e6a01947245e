"""The real command with the HTTP JSON receiver: each setting once, shown by what a client sees; and what curl sends."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.receivers.forward_http import ForwardHttpConfig
from emp_pipe.receivers.http_json import HttpJsonConfig
from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, rows_in
from tests.support.forward import Certificates
from tests.support.otlp_clients import raw, said_until_closed

ONE = b'{"message":"one","n":1}'


class JsonBench(Bench):
    """A process with one HTTP JSON receiver before its `file` exporter."""

    def __init__(self, directory: Path) -> None:
        self.json_port = free_port()
        super().__init__(directory)

    def receive(self, settings: str = "") -> None:
        more = f", {settings}" if settings else ""
        self.write(receivers=f'{{http_json: {{listen: "127.0.0.1:{self.json_port}"{more}}}}}')

    def receive_on_forwards_port(self, settings: str) -> None:
        self.write(receivers=f'{{forward: {{listen: "127.0.0.1:{self.json_port}", http: {{{settings}}}}}}}')


@pytest.fixture
def bench(tmp_path: Path) -> JsonBench:
    return JsonBench(tmp_path)


def post(port: int, body: bytes = ONE, path: str = "/app.web", scheme: str = "http", context: Any = None, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{port}{path}", body, named)
    try:
        with urllib.request.urlopen(request, timeout=20.0, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_records_reach_the_destination_and_the_dead_letters_can_be_listed(bench: JsonBench) -> None:
    bench.receive()
    with running(*bench.arguments) as command:
        assert post(bench.json_port, ONE + b'\n{"torn":\n' + ONE) == 200
        assert post(bench.json_port, b"torn") == 400
        until(lambda: [row["message"] for row in rows_in(bench.data_dir)] == ["one", "one"], "both records in the file")
        listed = run("dlq", "list", "--json", "--data-dir", str(bench.data_dir))
        assert listed.returncode == 0, listed.stderr
        assert "http_json" in listed.stdout
        command.process.terminate()
        assert command.wait() == 0


def _token(port: int) -> None:
    assert post(port) == 401
    assert post(port, Authorization="Bearer wrong") == 401
    assert post(port, Authorization="Bearer s3cret") == 200
    assert post(port, Authorization="Bearer next") == 200


def _client_tokens(port: int) -> None:
    assert post(port) == 401
    assert post(port, Authorization="Bearer own") == 200


def _max_request_bytes(port: int) -> None:
    assert post(port, b" " * 2048) == 413
    assert post(port) == 200


def _max_total_bytes(port: int) -> None:
    first = raw(port, b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n{")
    until(lambda: post(port, b" " * 900) == 503, "the second body finds no room")
    first.sendall(b" " * 899)
    assert b"400" in first.recv(1000)
    first.close()
    assert post(port) == 200


def _request_timeout_s(port: int) -> None:
    assert b" 408 " in said_until_closed(raw(port, b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n{"))


def _max_head_bytes(port: int) -> None:
    assert post(port, X_Long="x" * 2000) == 431
    assert post(port) == 200


def _head_timeout_s(port: int) -> None:
    before_the_default_s = HttpJsonConfig().head_timeout_s * 0.8
    assert said_until_closed(raw(port, b"POST /x HTTP/1.1\r\nHost:"), before_the_default_s) == b""


def _idle_timeout_s(port: int) -> None:
    assert b" 200 " in said_until_closed(raw(port, b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"))


def _one_connection(port: int) -> None:
    first = raw(port, b"POST /x HTTP/1.1\r\nHost: h\r\n")
    assert said_until_closed(raw(port)) == b""
    first.close()
    until(lambda: _served(port), "the place is free again")


def _served(port: int) -> bool:
    try:
        return post(port) == 200
    except OSError:
        return False


SETTINGS: dict[str, tuple[str, Callable[[int], None]]] = {
    "token": ("token: [s3cret, next]", _token),
    "client_tokens": ("client_tokens: {worker: own}", _client_tokens),
    "max_request_bytes": ("max_request_bytes: 1024", _max_request_bytes),
    "max_total_bytes": ("max_request_bytes: 1000, max_total_bytes: 1000", _max_total_bytes),
    "request_timeout_s": ("request_timeout_s: 0.5", _request_timeout_s),
    "max_head_bytes": ("max_head_bytes: 1024", _max_head_bytes),
    "head_timeout_s": ("head_timeout_s: 0.5", _head_timeout_s),
    "idle_timeout_s": ("idle_timeout_s: 0.5", _idle_timeout_s),
    "max_connections": ("max_connections: 1", _one_connection),
    "max_connections_per_address": ("max_connections_per_address: 1", _one_connection),
}
SHOWN_ELSEWHERE = {"listen", "allow_unauthenticated", "tls", "max_refusals_per_address_per_s"}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_seen_by_clients(bench: JsonBench, name: str) -> None:
    settings, shown = SETTINGS[name]
    bench.receive(settings)
    with running(*bench.arguments):
        shown(bench.json_port)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name in ForwardHttpConfig.model_fields])
def test_each_setting_is_seen_by_clients_of_forwards_port_too(bench: JsonBench, name: str) -> None:
    settings, shown = SETTINGS[name]
    bench.receive_on_forwards_port(settings)
    with running(*bench.arguments):
        shown(bench.json_port)


def test_every_setting_has_a_case() -> None:
    assert set(HttpJsonConfig.model_fields) == SETTINGS.keys() | SHOWN_ELSEWHERE
    assert set(ForwardHttpConfig.model_fields) <= SETTINGS.keys() | {"enabled", "helo_wait_ms"}, "those are in test_command_forward_http.py"


def test_tls_is_spoken_where_a_certificate_is_set_and_failed_handshakes_are_limited(bench: JsonBench) -> None:
    certificates = Certificates(bench.directory)
    cert, key = certificates.issue("server")
    bench.receive(f'tls: {{cert_file: "{cert}", key_file: "{key}"}}, max_refusals_per_address_per_s: 0.2')
    with running(*bench.arguments) as command:
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        assert post(bench.json_port, scheme="https", context=context) == 200
        for _ in range(3):  # a plain client gets an alert, a reset or nothing
            with pytest.raises(OSError):  # noqa: PT011
                post(bench.json_port)
        command.wait_for("TLS failed")
        with pytest.raises(OSError):  # noqa: PT011
            post(bench.json_port, scheme="https", context=context)
        command.wait_for("max_refusals_per_address_per_s")


def test_an_open_address_needs_a_guard_or_the_word_of_its_owner(bench: JsonBench) -> None:
    bench.write(receivers=f'{{http_json: {{listen: "*:{bench.json_port}"}}}}')
    refused = run("validate", str(bench.file))
    assert refused.returncode != 0
    assert "allow_unauthenticated" in refused.stderr
    bench.write(receivers=f'{{http_json: {{listen: "*:{bench.json_port}", allow_unauthenticated: true}}}}')
    with running(*bench.arguments):
        assert post(bench.json_port) == 200


@pytest.mark.parametrize("role", ["edge", "central"])
def test_a_role_takes_json_and_its_printed_configuration_says_so(tmp_path: Path, role: str) -> None:
    port = free_port()
    variables = {
        "EMP_DATA_DIR": str(tmp_path),
        "EMP_HTTP_JSON_LISTEN": f"127.0.0.1:{port}",
        "EMP_HTTP_JSON_TOKEN": "t",
        "PORT": str(free_port()),
    }
    with running(role, "--set", f"receivers.forward.listen=127.0.0.1:{free_port()}", **variables):
        assert post(port) == 401
        assert post(port, Authorization="Bearer t") == 200
        until(lambda: [row["message"] for row in rows_in(tmp_path)] == ["one"], "the record in the file")
    printed = run(role, "--print-config", **variables).stdout
    assert f'listen: ["127.0.0.1:{port}"]' in printed
    assert "env: EMP_HTTP_JSON_TOKEN" in printed


def test_curl_sends_what_it_sends_by_default(bench: JsonBench) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("not run: there is no curl (to run it put it on PATH)")
    bench.receive()
    address = f"http://127.0.0.1:{bench.json_port}/curl"
    many = bench.directory / "many.ndjson"
    many.write_bytes(b"".join(b'{"message":"%d"}\n' % number for number in range(2000)))
    with running(*bench.arguments):
        for arguments in (
            ["-d", ONE.decode()],
            ["--json", ONE.decode()],
            ["--data-urlencode", f"json={ONE.decode()}"],
            ["--data-binary", f"@{many}", "-H", "Content-Type: application/x-ndjson"],
            ["-T", str(many), "-H", "Transfer-Encoding: chunked"],
        ):
            done = subprocess.run([curl, "-sS", "-f", *arguments, address], capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, (arguments, done.stderr, done.stdout)
            assert json.loads(done.stdout) == {"refused": 0}, arguments
        until(lambda: len(rows_in(bench.data_dir)) == 4003, "all records in the file")
