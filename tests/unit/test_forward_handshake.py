"""Promises of the Forward handshake, both sides, without a socket."""

from __future__ import annotations

import contextlib
import hashlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe.errors import ErrorKind, InputError
from emp_pipe.forward_handshake import (
    MAX_SENT_BYTES,
    ClientHandshake,
    ClientStep,
    Credentials,
    Refusal,
    ServerHandshake,
    ServerOutcome,
    refused_pong,
)

_KEY = Credentials(shared_keys=(b"s3cret",))
_USERS = Credentials(shared_keys=(b"s3cret",), users={b"ada": b"lovelace"})


def test_a_nonce_survives_a_peer_that_decodes_it_as_text() -> None:
    hello = msgpack.unpackb(ServerHandshake(_USERS, "server").helo, raw=True)[1]
    for name in (b"nonce", b"auth"):
        assert len(hello[name]) == 16
        assert hello[name].decode("ascii", "replace").encode() == hello[name]


def _shake(server: ServerHandshake, client: ClientHandshake) -> tuple[ServerOutcome, ClientStep]:
    ping = client.received(server.helo)
    assert ping is not None
    assert not ping.done
    outcome = server.received(ping.send)
    assert outcome is not None
    step = client.received(outcome.reply)
    assert step is not None
    return outcome, step


def _ping(server: ServerHandshake, **changes: object) -> bytes:
    """The PING of a foreign client, as fluentd and Fluent Bit write it, with some elements changed."""
    nonce = msgpack.unpackb(server.helo, raw=True)[1][b"nonce"]
    salt, host = b"\x81salt\xff", b"worker"
    parts: dict[str, object] = {
        "type": b"PING",
        "host": host,
        "salt": salt,
        "digest": hashlib.sha512(salt + host + nonce + b"s3cret").hexdigest().encode(),
        "user": b"",
        "password": b"",
    }
    return msgpack.packb(list((parts | changes).values()), use_bin_type=False)


def test_two_sides_with_the_same_key_agree_and_recognise_each_other_as_emp_pipes():
    outcome, step = _shake(ServerHandshake(_KEY, "central"), ClientHandshake("edge", "s3cret"))
    assert (outcome.refusal, outcome.peer, outcome.emp_pipe_version) == (None, "edge", 1)
    assert (step.done, step.server, step.emp_pipe_version) == (True, "central", 1)


def test_both_of_two_keys_are_valid_at_once_so_that_they_can_be_rotated():
    keys = Credentials(shared_keys=(b"new", b"old"))
    for key in ("new", "old"):
        outcome, step = _shake(ServerHandshake(keys, "central"), ClientHandshake("edge", key))
        assert outcome.refusal is None, key
        assert step.done, key


def test_a_wrong_key_is_answered_with_pong_false_and_the_reason_reaches_the_client():
    server, client = ServerHandshake(_KEY, "central"), ClientHandshake("edge", "wrong")
    ping = client.received(server.helo)
    assert ping is not None
    outcome = server.received(ping.send)
    assert outcome is not None
    assert outcome.refusal is Refusal.SHARED_KEY
    with pytest.raises(InputError, match="shared_key mismatch") as caught:
        client.received(outcome.reply)
    assert caught.value.kind is ErrorKind.HANDSHAKE_REFUSED


@pytest.mark.parametrize(("user", "password"), [("ada", "wrong"), ("eve", "lovelace"), ("", "")])
def test_an_unknown_user_or_password_is_refused_with_one_and_the_same_reason(user: str, password: str):
    server, client = ServerHandshake(_USERS, "central"), ClientHandshake("edge", "s3cret", user, password)
    ping = client.received(server.helo)
    assert ping is not None
    outcome = server.received(ping.send)
    assert outcome is not None
    assert outcome.refusal is Refusal.USER


def test_a_known_user_gets_in_and_is_named():
    outcome, _ = _shake(ServerHandshake(_USERS, "central"), ClientHandshake("edge", "s3cret", "ada", "lovelace"))
    assert (outcome.refusal, outcome.username) == (None, "ada")


def test_nonce_and_salts_are_msgpack_str_without_nul_and_frames_fit_one_read_of_fluent_bit():
    server, client = ServerHandshake(_USERS, "c" * 200), ClientHandshake("e" * 200, "s3cret", "u" * 255, "lovelace")
    ping = client.received(server.helo)
    assert ping is not None
    outcome = ServerHandshake(_KEY, "c" * 200).received(_ping(server, user=b"x" * 255))
    assert outcome is not None
    for frame in (server.helo, ping.send, outcome.reply, *map(refused_pong, Refusal)):
        assert len(frame) <= MAX_SENT_BYTES
        assert not _has_bin(frame), "Fluent Bit's server refuses a salt of type bin"
    helo = msgpack.unpackb(server.helo, raw=True)[1]
    salt = msgpack.unpackb(ping.send, raw=True)[2]
    for value in (helo[b"nonce"], helo[b"auth"], salt):
        assert len(value) == 16
        assert 0 not in value, "the salt is a C string to some peers"


def _has_bin(frame: bytes) -> bool:
    def walk(value: object) -> bool:
        if isinstance(value, bytes):
            return True
        if isinstance(value, dict):
            return any(walk(key) or walk(item) for key, item in value.items())
        return isinstance(value, list) and any(walk(item) for item in value)

    return walk(msgpack.unpackb(frame, unicode_errors="surrogateescape", strict_map_key=False))


def test_every_reason_of_a_refusal_fits_the_32_bytes_that_fluent_bit_copies_it_into():
    for refusal in Refusal:
        assert len(refusal.value.encode()) <= 31, refusal


def test_a_foreign_client_gets_in_and_is_not_taken_for_an_emp_pipe():
    server = ServerHandshake(_KEY, "central")
    outcome = server.received(_ping(server))
    assert outcome is not None
    assert (outcome.refusal, outcome.emp_pipe_version, outcome.peer) == (None, 0, "worker")
    kind, accepted, reason, hostname, _ = msgpack.unpackb(outcome.reply)
    assert (kind, accepted, reason, hostname) == ("PONG", True, "", "central")


def test_a_server_of_the_clients_own_name_takes_another_one_because_fluentd_refuses_itself():
    server = ServerHandshake(_KEY, "worker")
    outcome = server.received(_ping(server))
    assert outcome is not None
    hostname = msgpack.unpackb(outcome.reply)[3]
    assert hostname != "worker"
    _, step = _shake(ServerHandshake(_KEY, "same"), ClientHandshake("same", "s3cret"))
    assert step.done, "the digest must be made with the name that is sent"


def test_a_seventh_element_goes_only_to_a_server_that_announced_itself():
    client = ClientHandshake("edge", "s3cret")
    foreign_helo = msgpack.packb([b"HELO", {b"nonce": b"n" * 16, b"auth": b"", b"keepalive": True}], use_bin_type=False)
    step = client.received(foreign_helo)
    assert step is not None
    assert len(msgpack.unpackb(step.send, raw=True)) == 6


def test_a_client_refuses_a_server_that_does_not_know_the_key():
    client = ClientHandshake("edge", "s3cret")
    assert client.received(ServerHandshake(_KEY, "central").helo) is not None
    with pytest.raises(InputError, match="does not know the shared key"):
        client.received(msgpack.packb([b"PONG", True, b"", b"central", b"0" * 128], use_bin_type=False))


def test_frames_that_arrive_byte_by_byte_are_understood_and_bytes_behind_the_ping_are_kept():
    server = ServerHandshake(_KEY, "central")
    ping = _ping(server)
    for position in range(len(ping) - 1):
        assert server.received(ping[position : position + 1]) is None
    outcome = server.received(ping[-1:] + b"\x93after")
    assert outcome is not None
    assert outcome.refusal is None
    assert outcome.rest == b"\x93after"


@pytest.mark.parametrize(
    "changes",
    [
        {"type": b"PONG"},
        {"host": 5},
        {"host": b"h" * 256},
        {"salt": None},
        {"digest": [b"x"]},
        {"user": {b"a": 1}},
        {"password": 7},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_malformed_ping_is_refused_as_malformed(changes: dict[str, object]):
    server = ServerHandshake(_USERS, "central")
    outcome = server.received(_ping(server, **changes))
    assert outcome is not None
    assert outcome.refusal is Refusal.MALFORMED


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=6))
def test_random_bytes_never_raise_at_the_server_and_never_get_in(pieces: list[bytes]):
    server = ServerHandshake(_USERS, "central")
    for piece in pieces:
        outcome = server.received(piece)
        if outcome is not None:
            assert outcome.refusal is not None
            break


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_mutated_ping_never_raises_at_the_server(position: int, value: int):
    server = ServerHandshake(_KEY, "central")
    ping = bytearray(_ping(server))
    ping[position % len(ping)] = value
    server.received(bytes(ping))


@pytest.mark.parametrize(
    "hostile",
    [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff" + b"x" * 70_000, b"\xdb\x7f\xff\xff\xff" + b"x" * 70_000],
    ids=["nesting", "array header", "bin header", "str header"],
)
def test_deep_nesting_and_giant_headers_are_refused_within_bounds(hostile: bytes):
    server = ServerHandshake(_KEY, "central")
    outcome = None
    for start in range(0, len(hostile), 4096):
        outcome = server.received(hostile[start : start + 4096])
        if outcome is not None:
            break
    assert outcome is not None
    assert outcome.refusal is Refusal.MALFORMED


@given(st.binary(min_size=1, max_size=300))
def test_random_bytes_from_a_server_end_as_a_refusal_or_as_waiting(data: bytes):
    with contextlib.suppress(InputError):
        step = ClientHandshake("edge", "s3cret").received(data)
        assert step is None or not step.done
