"""The real command with both protocols on Forward's port: a POST and a Forward sender side by side, and what `http` sets."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fluent import sender

from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in


def post(port: int, body: bytes = b'{"message":"by HTTP"}', **headers: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/app.web", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_post_and_a_forward_sender_reach_the_destination_by_one_port(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with running(*bench.arguments):
        assert post(bench.port) == 200
        forward = sender.FluentSender("app", host="127.0.0.1", port=bench.port)
        assert forward.emit("web", {"message": "by Forward"})
        forward.close()
        until(lambda: sorted(row["message"] for row in rows_in(bench.data_dir)) == ["by Forward", "by HTTP"], "both records")


def test_with_a_shared_key_only_a_token_gets_http_in_and_secrets_are_not_printed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    settings = "token: s3cret, client_tokens: {ci: own}"
    bench.write(receivers=f'{{forward: {{listen: "127.0.0.1:{bench.port}", shared_key: key, http: {{{settings}}}}}}}')
    printed = run("run", str(bench.file), "--print-config", "--data-dir", str(bench.data_dir)).stdout
    assert "client_tokens" in printed
    assert "s3cret" not in printed
    with running(*bench.arguments):
        assert post(bench.port) == 401
        assert post(bench.port, Authorization="Bearer key") == 401
        assert post(bench.port, Authorization="Bearer s3cret") == 200
        assert post(bench.port, Authorization="Bearer own") == 200
        until(lambda: [row["message"] for row in rows_in(bench.data_dir)] == ["by HTTP"] * 2, "what was taken")


def test_http_can_be_switched_off_and_the_helo_waits_for_it_as_long_as_is_set(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(receivers=f'{{forward: {{listen: "127.0.0.1:{bench.port}", http: {{enabled: false}}}}}}')
    with running(*bench.arguments):
        assert post(bench.port) == 400
    settings = "shared_key: key, http: {token: s3cret, helo_wait_ms: 3600000}"
    bench.write(receivers=f'{{forward: {{listen: "127.0.0.1:{bench.port}", {settings}}}}}')
    with running(*bench.arguments), socket.create_connection(("127.0.0.1", bench.port), timeout=1.0) as silent:
        with pytest.raises(TimeoutError):
            silent.recv(1)
        assert post(bench.port, Authorization="Bearer s3cret") == 200
