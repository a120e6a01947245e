"""Promises of the Forward receiver about who gets in: TLS, mutual TLS, shared keys, users, networks, and how the others are refused."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path
from typing import Any

import msgpack
import pytest

from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.forward_handshake import ClientHandshake
from emp_pipe.listening import addresses
from emp_pipe.receivers.forward import ForwardConfig
from tests.support.forward import PATIENCE_S, Certificates, Peer, connected, entries_of, message_frame, packed_frame, running


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def _trusting(certificates: Certificates, *, shows: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    if shows:
        context.load_cert_chain(*shows)
    return context


async def _shake(peer: Peer, key: str = "s3cret", host: str = "worker", user: str = "", password: str = "") -> list[Any]:
    """The handshake of a foreign client, element by element; returns the PONG."""
    kind, options = await peer.value()
    assert kind == b"HELO"
    salt = b"\x01\xfesalt-of-worker"
    digest = hashlib.sha512(salt + host.encode() + options[b"nonce"] + key.encode()).hexdigest()
    secret = hashlib.sha512(options[b"auth"] + user.encode() + password.encode()).hexdigest() if options[b"auth"] else ""
    await peer.send(msgpack.packb([b"PING", host.encode(), salt, digest.encode(), user.encode(), secret.encode()], use_bin_type=False))
    return await peer.value()


async def _sends(peer: Peer) -> None:
    await peer.send(packed_frame(entries_of([1]), chunk="c"))
    assert await peer.ack() == "c"


def _lines(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if words in entry.getMessage()]


# --- TLS --------------------------------------------------------------------------------------------


async def test_records_come_over_tls_with_acks(tmp_path: Path, certificates: Certificates):
    async with running(tmp_path, tls=certificates.server()) as server:
        async with connected(server.address, ssl=_trusting(certificates), server_hostname="localhost") as peer:
            frames = [packed_frame(entries_of(range(n * 100, n * 100 + 100)), chunk=f"c{n}") for n in range(100)]
            await peer.send(b"".join(frames))
            assert [await peer.ack() for _ in frames] == [f"c{n}" for n in range(100)]
        assert sorted(server.intake.numbers()) == list(range(10_000))


async def test_a_tls_connection_that_stays_silent_from_its_beginning_is_kept_and_ends_nothing(tmp_path: Path, certificates: Certificates):
    async with (
        running(tmp_path, tls=certificates.server()) as server,
        connected(server.address, ssl=_trusting(certificates), server_hostname="localhost") as peer,
    ):
        await _until(lambda: server.receiver._hub.connections)
        [connection] = server.receiver._hub.connections
        connection.get_buffer(-1)  # as the event loop does when TLS has bytes that are none of the stream's
        connection.give_memory_back()  # as the sweep does after a silence
        await _sends(peer)


async def test_with_a_client_authority_only_its_clients_get_in(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture
):
    async with running(tmp_path, tls=certificates.server(mutual=True)) as server:
        for _ in range(3):
            async with connected(server.address, ssl=_trusting(certificates), server_hostname="localhost") as peer:
                assert await peer.closed() == b""
        await _until(lambda: server.metric("forward_refused_handshakes_total", reason="tls_failed") == 3)
        assert len(_lines(caplog, "TLS handshake failed")) == 1
        shows = certificates.issue("client", "worker.example")
        async with connected(server.address, ssl=_trusting(certificates, shows=shows), server_hostname="localhost") as peer:
            await _sends(peer)


async def test_a_plain_client_on_the_tls_port_is_refused_in_forward_and_with_one_line(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture
):
    async with running(tmp_path, tls=certificates.server()) as server:
        for _ in range(3):
            async with connected(server.address) as peer:
                await peer.send(message_frame(1))
                assert await peer.value() == [b"PONG", False, b"this port speaks TLS", b"", b""]
                assert await peer.closed() == b""
        assert server.intake.received == 0
        assert len(_lines(caplog, "this port speaks TLS")) == 1


async def test_a_client_that_never_begins_tls_is_closed_after_the_handshake_timeout(tmp_path: Path, certificates: Certificates):
    async with running(tmp_path, tls=certificates.server(), handshake_timeout_s=0.1) as server, connected(server.address) as peer:
        assert await peer.closed() == b""
        assert server.metric("forward_refused_handshakes_total", reason="timed_out") == 1


async def test_a_renewed_certificate_is_shown_after_a_reload_and_open_connections_stay(tmp_path: Path, certificates: Certificates):
    async with (
        running(tmp_path, tls=certificates.server()) as server,
        connected(server.address, ssl=_trusting(certificates), server_hostname="localhost") as old,
    ):
        await _sends(old)
        other = Certificates(tmp_path)  # the same files, another authority
        other.issue("server")
        await server.receiver.reload()
        async with connected(server.address, ssl=_trusting(other), server_hostname="localhost") as new:
            await _sends(new)
        await _sends(old)


# --- shared keys and users --------------------------------------------------------------------------


async def test_a_client_with_the_key_gets_in_and_the_server_proves_that_it_knows_it(tmp_path: Path):
    async with running(tmp_path, shared_key="s3cret") as server, connected(server.address) as peer:
        kind, accepted, reason, hostname, _ = await _shake(peer)
        assert (kind, accepted, reason, hostname) == (b"PONG", True, b"", b"gpu-7.central")
        await _sends(peer)


async def test_two_keys_are_valid_at_once(tmp_path: Path):
    async with running(tmp_path, shared_key=["new", "old"]) as server:
        for key in ("new", "old"):
            async with connected(server.address) as peer:
                assert (await _shake(peer, key))[1] is True, key
                await _sends(peer)


async def test_a_wrong_key_is_answered_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with running(tmp_path, shared_key="s3cret") as server:
        for _ in range(5):
            async with connected(server.address) as peer:
                assert await _shake(peer, "wrong") == [b"PONG", False, b"shared_key mismatch", b"", b""]
                assert await peer.closed() == b""
        (line,) = _lines(caplog, "shared_key mismatch")
        assert "127.0.0.1" in line
        assert "set the same `shared_key`" in line
        assert "s3cret" not in caplog.text
        assert server.metric("forward_refused_handshakes_total", reason="shared_key") == 5


async def test_frames_before_the_handshake_are_refused_and_never_taken_for_records(tmp_path: Path):
    async with running(tmp_path, shared_key="s3cret") as server, connected(server.address) as peer:
        await peer.send(message_frame(1, chunk="c") * 3)
        assert (await peer.value())[0] == b"HELO"
        assert await peer.value() == [b"PONG", False, b"malformed handshake", b"", b""]
        assert server.intake.received == 0


async def test_users_with_their_password_get_in_and_others_do_not(tmp_path: Path):
    async with running(tmp_path, shared_key="s3cret", users={"ada": "lovelace"}) as server:
        async with connected(server.address) as peer:
            assert (await _shake(peer, user="ada", password="lovelace"))[1] is True
            await _sends(peer)
        for user, password in (("ada", "wrong"), ("eve", "lovelace"), ("", "")):
            async with connected(server.address) as peer:
                pong = await _shake(peer, user=user, password=password)
                assert pong[1:3] == [False, b"username/password mismatch"], user


async def test_a_network_has_a_key_of_its_own_and_the_most_specific_entry_wins(tmp_path: Path):
    clients = [{"network": "127.0.0.0/8", "shared_key": "wide"}, {"network": "127.0.0.1", "shared_key": "narrow"}]
    async with running(tmp_path, shared_key="other", clients=clients) as server:
        for key, gets_in in (("narrow", True), ("wide", False), ("other", False)):
            async with connected(server.address) as peer:
                assert (await _shake(peer, key))[1] is gets_in, key


async def test_a_host_name_names_a_source_too(tmp_path: Path):
    clients = [{"network": "localhost", "shared_key": "own"}]
    async with running(tmp_path, shared_key="other", clients=clients) as server, connected(server.address) as peer:
        assert (await _shake(peer, "own"))[1] is True


async def test_a_source_that_no_entry_names_is_refused_where_anonymous_sources_are(tmp_path: Path):
    settings = {"shared_key": "s3cret", "clients": [{"network": "10.0.0.0/8"}], "allow_anonymous_source": False}
    async with running(tmp_path, **settings) as server, connected(server.address) as peer:
        assert (await _shake(peer))[1:3] == [False, b"source address is not allowed"]
        assert server.intake.received == 0


async def test_only_the_users_of_an_entry_get_in_from_there(tmp_path: Path):
    settings = {"shared_key": "k", "users": {"ada": "1", "bob": "2"}, "clients": [{"network": "127.0.0.1", "users": ["bob"]}]}
    async with running(tmp_path, **settings) as server:
        for user, password, gets_in in (("bob", "2", True), ("ada", "1", False)):
            async with connected(server.address) as peer:
                assert (await _shake(peer, "k", user=user, password=password))[1] is gets_in, user


async def test_a_fluentd_heartbeat_through_the_whole_handshake_leaves_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with running(tmp_path, shared_key="s3cret") as server:
        caplog.clear()
        for _ in range(5):
            async with connected(server.address) as peer:
                assert (await _shake(peer))[1] is True
        await _until(lambda: not server.receiver._hub.connections)
        assert [entry for entry in caplog.records if entry.name.startswith("emp_pipe")] == []


async def test_a_slow_handshake_is_closed_even_when_bytes_drip(tmp_path: Path):
    async with running(tmp_path, shared_key="s3cret", handshake_timeout_s=0.2) as server, connected(server.address) as peer:
        assert (await peer.value())[0] == b"HELO"
        await peer.send(b"\x96\xda\x40\x00")
        dripping = asyncio.ensure_future(_drip(peer))
        assert await peer.value() == [b"PONG", False, b"handshake timed out", b"", b""]
        assert await peer.closed() == b""
        dripping.cancel()
        assert server.metric("forward_refused_handshakes_total", reason="timed_out") == 1


async def _drip(peer: Peer) -> None:
    while True:
        await peer.send(b"\x01")
        await asyncio.sleep(0.02)


async def test_keys_change_at_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key_file = tmp_path / "key"
    key_file.write_text("first\n")
    async with running(tmp_path, shared_key={"file": str(key_file)}) as server:
        async with connected(server.address) as peer:
            assert (await _shake(peer, "first"))[1] is True
        key_file.write_text("second\n")
        await server.receiver.reload()
        for key, gets_in in (("first", False), ("second", True)):
            async with connected(server.address) as peer:
                assert (await _shake(peer, key))[1] is gets_in


async def test_plain_and_secure_receivers_run_at_once_in_one_process(tmp_path: Path, certificates: Certificates):
    async with (
        running(tmp_path) as plain,
        running(tmp_path, id="forward/secure", tls=certificates.server(), shared_key="s3cret") as secure,
    ):
        async with connected(plain.address) as peer:
            await _sends(peer)
        async with connected(secure.address, ssl=_trusting(certificates), server_hostname="localhost") as peer:
            assert (await _shake(peer))[1] is True
            await _sends(peer)
        assert [arrival.receiver for arrival in plain.intake.arrivals] == ["forward"]
        assert [arrival.receiver for arrival in secure.intake.arrivals] == ["forward/secure"]


async def test_a_peer_that_says_it_is_an_emp_pipe_without_the_key_is_none(tmp_path: Path):
    async with running(tmp_path, shared_key="s3cret") as server, connected(server.address) as peer:
        client = ClientHandshake("edge", "guessed")
        step = client.received(await _raw(peer))
        assert step is not None
        await peer.send(step.send)
        assert (await peer.value())[1] is False


async def _raw(peer: Peer) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await peer.reader.read(1024)


# --- where it listens -------------------------------------------------------------------------------

_ALL_INTERFACES = ["0.0.0.0", "::"]  # noqa: S104


@pytest.mark.parametrize(
    ("settings", "guarded"),
    [
        ({}, False),
        ({"shared_key": "k"}, True),
        ({"clients": [{"network": "10.0.0.0/8", "shared_key": "k"}]}, False),
        ({"clients": [{"network": "10.0.0.0/8", "shared_key": "k"}], "allow_anonymous_source": False}, True),
        ({"tls": {"cert_file": "c", "key_file": "k"}}, False),
        ({"tls": {"cert_file": "c", "key_file": "k", "client_ca_file": "a"}}, True),
    ],
    ids=["open", "shared key", "a key for some", "a key for all", "TLS alone", "client certificates"],
)
def test_a_port_alone_binds_all_interfaces_only_where_everybody_shows_a_key_or_certificate(settings: dict[str, Any], guarded: bool):
    assert ForwardConfig(**settings).is_guarded is guarded
    hosts = [host for host, _ in addresses("24224", guarded=guarded)]
    assert hosts == (_ALL_INTERFACES if guarded else ["127.0.0.1", "::1"])


def test_an_address_in_the_setting_is_taken_as_it_is():
    assert addresses("10.1.2.3:24224", guarded=False) == [("10.1.2.3", 24224)]
    assert addresses("[::1]:24224", guarded=False) == [("::1", 24224)]
    assert [host for host, _ in addresses("*:24224", guarded=False)] == _ALL_INTERFACES


@pytest.mark.parametrize("entry", ["", "host", "host:", "host:99999", "a:b:1", "host:24224/x"])
def test_an_address_that_is_none_is_refused_by_the_settings(entry: str):
    with pytest.raises(ValueError, match=r"address|listen"):
        ForwardConfig(listen=[entry])


async def test_a_secret_that_cannot_be_read_stops_the_start_and_names_the_setting(tmp_path: Path):
    with pytest.raises(ExceptionGroup) as caught:
        async with running(tmp_path, shared_key={"env": "EMP_PIPE_TEST_NO_SUCH_VARIABLE"}):
            pass
    error = caught.value.exceptions[0]
    assert isinstance(error, ConfigError)
    assert error.kind is ErrorKind.CONFIG_INVALID
    assert "forward: shared_key" in str(error)
    assert "EMP_PIPE_TEST_NO_SUCH_VARIABLE" in str(error)


def test_a_key_never_shows_in_the_settings_text():
    config = ForwardConfig(shared_key="s3cret", users={"ada": "lovelace"})
    assert "s3cret" not in repr(config)
    assert "lovelace" not in repr(config)


async def _until(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
