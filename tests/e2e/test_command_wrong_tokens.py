"""An address that sends wrong tokens again and again is turned away at each port that asks for one; who is there already stays, and others
behind the same address wait for seconds only."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.command import Running, running, until
from tests.support.otlp_clients import GOOD, channel, export, post
from tests.support.strangers import HTTP_HEAD, connected, get, health, listening, metric

RIGHT = {"Authorization": "Bearer right"}
MOST_WRONG = 100
"""More than any measure below holds."""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Running]:
    listener = {"listen": "127.0.0.1:0", "token": {"env": "TOKEN"}, "max_refusals_per_address_per_s": 2}
    config = {
        "data_dir": str(tmp_path / "data"),
        "http": {"listen": "127.0.0.1:0", "key": {"env": "TOKEN"}, "max_refusals_per_address_per_s": 2},
        "receivers": {"otlp_http": listener, "otlp_grpc": listener, "http_json": listener},
        "exporters": {"noop": {}},
    }
    file = tmp_path / "emp.yaml"
    file.write_text(json.dumps(config))
    with running("run", str(file), TOKEN="right") as started:
        yield started


def ask(peer: socket.socket, token: str) -> bytes:
    """Return the status line of one request; nothing where the server has closed."""
    try:
        peer.sendall(HTTP_HEAD + f"Authorization: Bearer {token}\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD)
        return peer.recv(65_536).partition(b"\r\n")[0]
    except ConnectionError:
        return b""


def all_of(peer: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    answers = bytearray()
    while data := peer.recv(65_536):
        answers += data
    return bytes(answers)


def test_wrong_tokens_by_otlp_http_close_the_connection_and_then_the_door_for_seconds_only(command: Running) -> None:
    port = listening(command, "otlp_http")
    with connected(port) as good:
        assert ask(good, "right") == b"HTTP/1.1 200 OK"
        with connected(port) as stranger:
            answers = [answer for _ in range(MOST_WRONG) if (answer := ask(stranger, "wrong"))]
        assert set(answers) == {b"HTTP/1.1 401 Unauthorized"}
        assert len(answers) < MOST_WRONG, "it goes on on the same connection"
        with connected(port) as again:
            assert ask(again, "right") == b"", "the address is not turned away"
        assert ask(good, "right") == b"HTTP/1.1 200 OK", "who was there before is"
    text = get(f"{health(command)}/metrics", **RIGHT)[1]
    assert metric(text, "cut_connections_total", component="otlp_http", reason="refused_too_often") >= 1

    def gets_in() -> bool:
        with connected(port) as neighbour:
            return ask(neighbour, "right") == b"HTTP/1.1 200 OK"

    until(gets_in, "the address is let in again")


@pytest.mark.parametrize(
    ("component", "line"),
    [("otlp_http", "GET /nothing"), ("otlp_http", "POST /nothing"), ("otlp_http", "GET /v1/logs"), ("http_json", "GET /app")],
)
def test_requests_for_what_is_not_there_count_as_wrong_tokens_unless_they_show_a_right_one(
    command: Running, component: str, line: str
) -> None:
    port = listening(command, component)
    wrong = f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    right = wrong[:-2] + b"Authorization: Bearer right\r\n\r\n"
    with connected(port) as good:
        good.sendall(right * MOST_WRONG + wrong[:-2] + b"Connection: close\r\n\r\n")
        assert all_of(good).count(b"HTTP/1.1 40") == MOST_WRONG + 1
    with connected(port) as stranger:
        stranger.sendall(wrong * MOST_WRONG)  # at once: a pipeline
        answers = all_of(stranger).count(b"HTTP/1.1 40")
    assert 0 < answers < MOST_WRONG, "it goes on on the same connection"
    with connected(port) as again:
        assert ask(again, "right") == b"", "the address is let in"


def test_wrong_tokens_by_otlp_grpc_close_the_connection_and_then_the_door(command: Running) -> None:
    port = listening(command, "otlp_grpc")
    with channel(port) as good, channel(port) as stranger:
        assert export(good, token="right") is grpc.StatusCode.OK
        answers = [export(stranger, token="wrong") for _ in range(20)]
        assert answers[0] is grpc.StatusCode.UNAUTHENTICATED
        assert grpc.StatusCode.UNAVAILABLE in answers, "it goes on on the same connection"
        assert export(good, token="right") is grpc.StatusCode.OK, "who was there before is turned away"


def test_calls_of_what_is_not_there_count_as_wrong_tokens_unless_they_show_a_right_one(command: Running) -> None:
    def call(opened: grpc.Channel, *metadata: tuple[str, str]) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as told:
            opened.unary_unary("/no.such.Service/Method")(b"", timeout=30, metadata=metadata)
        return told.value.code()

    port = listening(command, "otlp_grpc")
    with channel(port) as good, channel(port) as stranger:
        told = {call(good, ("authorization", "Bearer right")) for _ in range(MOST_WRONG)}
        assert told == {grpc.StatusCode.UNIMPLEMENTED}
        answers = [call(stranger) for _ in range(MOST_WRONG)]
        assert answers[0] is grpc.StatusCode.UNIMPLEMENTED
        assert grpc.StatusCode.UNAVAILABLE in answers, "it goes on on the same connection"
        assert export(good, token="right") is grpc.StatusCode.OK, "who was there before is turned away"


def test_wrong_keys_shown_to_readyz_count_too_and_a_probe_without_any_does_not(command: Running) -> None:
    """Its answer says whether a key was right."""
    url = health(command)
    for _ in range(MOST_WRONG):
        assert json.loads(get(f"{url}/readyz")[1]) == {"ready": True}
    assert "reason" in json.loads(get(f"{url}/readyz", **RIGHT)[1])
    for _ in range(MOST_WRONG):
        assert json.loads(get(f"{url}/readyz", Authorization="Bearer wrong")[1]) == {"ready": True}
    assert json.loads(get(f"{url}/readyz", **RIGHT)[1]) == {"ready": True}, "a guess is looked at"
    assert get(f"{url}/metrics", **RIGHT)[0] == 429


def test_wrong_keys_at_the_http_port_get_nothing_but_health_for_a_while(command: Running) -> None:
    url = health(command)
    assert get(f"{url}/metrics", **RIGHT)[0] == 200
    answers = [get(f"{url}/metrics", Authorization="Bearer wrong")[0] for _ in range(MOST_WRONG)]
    assert answers[0] == 401
    assert answers[-1] == 429
    assert get(f"{url}/metrics", **RIGHT)[0] == 429, "a guess is looked at"
    assert get(f"{url}/healthz")[0] == 200, "a probe from the same address is turned away"
    assert json.loads(get(f"{url}/readyz", **RIGHT)[1]) == {"ready": True}

    def gets_in() -> bool:
        return get(f"{url}/metrics", **RIGHT)[0] == 200

    until(gets_in, "the address is served again")
    assert metric(get(f"{url}/metrics", **RIGHT)[1], "cut_connections_total", component="http", reason="refused_too_often") >= 1


def test_a_wrong_token_now_and_then_turns_nobody_away(command: Running) -> None:
    port = listening(command, "otlp_http")
    for _ in range(5):
        assert post(port, Authorization="Bearer wrong").status == 401
        assert post(port, Authorization="Bearer right").status == 200
        time.sleep(0.5)
