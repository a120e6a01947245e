"""Promises of the command about strangers and secrets: nobody listens openly by accident, no secret is ever shown, reloads come through."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support.command import free_port, run, running
from tests.support.forward import message_frame
from tests.support.strangers import HTTP_HEAD, connected, get, health, is_closed, listening

ANY = "0.0.0.0:0"


def written(tmp_path: Path, **parts: Any) -> Path:
    base = {"data_dir": str(tmp_path / "data"), "http": {"listen": "127.0.0.1:0"}, "exporters": {"noop": {}}}
    file = tmp_path / "emp.yaml"
    file.write_text(json.dumps(base | parts))
    return file


# --- who may send -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("receiver", "credentials"), [("forward", "`shared_key`"), ("otlp_http", "`token`"), ("otlp_grpc", "`token`")])
def test_a_receiver_that_others_reach_and_that_asks_for_nothing_is_refused_unless_that_is_said(
    tmp_path: Path, receiver: str, credentials: str
) -> None:
    file = written(tmp_path, receivers={receiver: {"listen": ANY}})
    for command in (("run", str(file)), ("validate", str(file))):
        result = run(*command)
        assert result.returncode == 2
        assert f"emp.yaml:1: receivers.{receiver}" in result.stderr
        assert f"other machines reach `{ANY}`" in result.stderr
        assert credentials in result.stderr
        assert "`allow_unauthenticated: true`" in result.stderr
    with running("run", str(written(tmp_path, receivers={receiver: {"listen": ANY, "allow_unauthenticated": True}}))) as command:
        command.wait_for("listening on 0.0.0.0:")


def test_on_a_platforms_port_strangers_learn_yes_or_no_and_metrics_need_the_key(tmp_path: Path) -> None:
    arguments = ("edge", "--data-dir", str(tmp_path), "--set", "receivers.forward.listen=127.0.0.1:0")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(*arguments, PORT=str(port)):
        assert json.loads(get(f"{url}/readyz")[1]) == {"ready": True}
        status, text = get(f"{url}/metrics")
        assert status == 403
        assert "set http.key" in text
    with running(*arguments, PORT=str(port), EMP_HTTP_KEY="k3y"):
        assert get(f"{url}/metrics")[0] == 401
        assert get(f"{url}/metrics", Authorization="Bearer wrong")[0] == 401
        assert get(f"{url}/metrics", Authorization="Bearer k3y")[0] == 200
    with running(*arguments, PORT=str(port), EMP_ALLOW_UNAUTHENTICATED="true"):
        assert get(f"{url}/metrics")[0] == 200


# --- secrets ----------------------------------------------------------------------------------------


def test_a_secret_that_is_written_out_is_warned_of_with_what_to_write(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer abc", "X-Tenant": "blue", "X-Api-Key": "${KEY}"}
    receivers = {
        "forward": {"listen": "127.0.0.1:0", "shared_key": "inl1ne"},
        "otlp_http": {"listen": "127.0.0.1:0", "token": {"env": "T"}},
    }
    exporters = {"otlp_http": {"endpoint": "http://127.0.0.1:1", "headers": headers}}
    file = written(tmp_path, receivers=receivers, exporters=exporters)
    result = run("validate", str(file), KEY="k")
    warnings = [line for line in result.stderr.splitlines() if "the secret itself stands here" in line]
    assert [line.partition(": the secret")[0].partition("emp.yaml:1: ")[2] for line in warnings] == [
        "receivers.forward.shared_key[0]",
        "exporters.otlp_http.headers.Authorization",
    ]
    assert all("{env: NAME} or {file: /path}" in line for line in warnings)
    with running("run", str(file), KEY="k", T="t") as command:
        command.wait_for("receivers.forward.shared_key[0]: the secret itself stands here")
        assert not [line for line in command.lines if "inl1ne" in line or "Bearer abc" in line]


SECRETS = {
    "KEY": "s3cret-shared-key",
    "PASSWORD": "s3cret-password",
    "TOKEN": "s3cret-token",
    "HTTP": "s3cret-http-key",
    "HEADER": "s3cret-header",
    "PEER": "s3cret-key-of-a-peer",
}


def test_no_secret_is_in_anything_that_a_run_at_debug_level_says(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-token-in-a-file")
    config = {
        "log_level": "debug",
        "http": {"listen": "127.0.0.1:0", "key": {"env": "HTTP"}},
        "receivers": {
            "forward": {"listen": "127.0.0.1:0", "shared_key": [{"env": "KEY"}, "s3cret-inline"], "users": {"ada": {"env": "PASSWORD"}}},
            "forward/open": {"listen": "127.0.0.1:0"},
            "otlp_http": {"listen": "127.0.0.1:0", "token": [{"env": "TOKEN"}, {"file": str(tmp_path / "token")}]},
        },
        "exporters": {
            "otlp_http": {"endpoint": f"http://127.0.0.1:{free_port()}", "headers": {"Authorization": {"env": "HEADER"}}},
            "forward": {"endpoint": f"127.0.0.1:{free_port()}", "shared_key": {"env": "PEER"}},
        },
    }
    file = written(tmp_path, **config)
    said = run("run", str(file), "--print-config", **SECRETS).stdout
    with running("run", str(file), **SECRETS) as command:
        bearer = f"Bearer {SECRETS['HTTP']}"
        for authorization in ("Bearer wrong", bearer):
            for path in ("/metrics", "/readyz", "/nowhere"):
                said += get(health(command) + path, Authorization=authorization)[1]
        with connected(listening(command, "forward")) as peer:
            said += repr(peer.recv(1000))
            peer.sendall(bytes(msgpack.packb([b"PING", b"h", b"s", b"d" * 128, b"ada", b"p"], use_bin_type=False)))
            said += repr(peer.recv(1000))
            assert is_closed(peer)
        with connected(listening(command, "otlp_http")) as peer:
            for token in ("wrong", SECRETS["TOKEN"]):
                peer.sendall(HTTP_HEAD + f"Authorization: Bearer {token}\r\nContent-Length: 3\r\n\r\nabc".encode())
                said += repr(peer.recv(1000))
        with connected(listening(command, "forward/open")) as peer:
            peer.sendall(message_frame(1, chunk="c"))
            peer.recv(1000)
        command.wait_for("otlp_http")
        for arguments in (("groups", "list"), ("groups", "list", "--json"), ("dlq", "list")):
            result = run(*arguments, "--data-dir", str(tmp_path / "data"))
            said += result.stdout + result.stderr
        file.write_text(file.read_text().replace('"users"', '"usres"'))
        before = len(command.messages())
        command.signal(signal.SIGHUP)
        command.wait_for("not reloaded", after=before)
        result = run("validate", str(file), **SECRETS)
        said += result.stdout + result.stderr
        command.signal(signal.SIGTERM)
        command.wait()
        said += "\n".join(command.lines)
    assert "shared_key mismatch" in said, "the run did say something"
    assert "s3cret" not in said, [line for line in said.splitlines() if "s3cret" in line]


def test_the_key_of_the_http_port_is_read_again_and_stays_what_it_was_where_it_cannot_be(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first")
    receivers = {"forward": {"listen": "127.0.0.1:0"}}
    file = written(tmp_path, http={"listen": "127.0.0.1:0", "key": {"file": str(key)}}, receivers=receivers)

    def status(key: str) -> int:
        return get(f"{health(command)}/metrics", Authorization=f"Bearer {key}")[0]

    with running("run", str(file)) as command:
        key.write_text("second")
        assert (status("first"), status("second")) == (200, 401), "nobody asked for a reload"
        command.signal(signal.SIGHUP)
        command.wait_for("reloaded: ")
        assert (status("first"), status("second")) == (401, 200)
        key.unlink()
        command.signal(signal.SIGHUP)
        command.wait_for("not reloaded")
        assert status("second") == 200


# --- signals and permissions ------------------------------------------------------------------------


def test_a_reload_that_is_asked_for_before_the_configuration_is_read_is_done_and_ends_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "emp.yaml"
    text = written(tmp_path, receivers={"forward": {"listen": "127.0.0.1:0"}}).read_text()
    pipe.unlink()
    os.mkfifo(pipe)
    with running("run", str(pipe), ready="") as command:
        with pipe.open("w") as writer:  # opened on the other side: the command waits here for its configuration
            command.signal(signal.SIGHUP)
            writer.write(text)
        command.wait_for("health: ")
        with pipe.open("w") as writer:  # it reads the configuration again
            writer.write(text)
        command.wait_for("reloaded: no component changed")
        command.signal(signal.SIGTERM)
        assert command.wait() == 0


def test_the_permissions_of_a_unix_socket_are_shown_in_octal_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    file = tmp_path / "emp.yaml"
    file.write_text(
        f"data_dir: {tmp_path}/data\nhttp: {{listen: '127.0.0.1:0'}}\nexporters: {{noop: }}\n"
        f"receivers: {{forward: {{listen: '127.0.0.1:0', unix_path: {path}, unix_mode: 0600}}}}\n"
    )
    printed = run("run", str(file), "--print-config").stdout
    assert "unix_mode: 0600" in printed
    file.write_text(printed)
    with running("run", str(file)):
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
