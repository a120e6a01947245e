"""Promises of the OTLP receivers about who gets in: tokens, TLS, mutual TLS, addresses; and how the others are refused."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.listening import addresses
from emp_pipe.receivers.otlp_grpc import OtlpGrpcConfig
from emp_pipe.receivers.otlp_http import OtlpHttpConfig
from emp_pipe.tls import TlsServerConfig
from tests.support.forward import PATIENCE_S, Certificates
from tests.support.otlp_receiving import GrpcClient, Running, Transport, connected, encoded, head, request, running

GOOD = encoded(request("logs"))
BAD_ITEM = request("traces", 2)
BAD_ITEM.resource_spans[0].scope_spans[0].spans[0].trace_id = b"short"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@contextlib.asynccontextmanager
async def by_tls(server: Running, trusted: Certificates, shows: tuple[Path, Path] | None = None) -> AsyncIterator[Any]:
    """Connect a client that trusts an authority, and shows a certificate or none."""
    if server.transport == "http":
        context = ssl.create_default_context(cafile=str(trusted.ca_file))
        if shows:
            context.load_cert_chain(*shows)
        async with connected(server, ssl=context, server_hostname="localhost") as client:
            yield client
        return
    cert, key = (path.read_bytes() for path in shows) if shows else (None, None)
    credentials = grpc.ssl_channel_credentials(trusted.ca_file.read_bytes(), key, cert)
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{server.address[1]}", credentials, options=options) as channel:
        yield GrpcClient(channel, ())


async def does_not_get_in(server: Running, trusted: Certificates, shows: tuple[Path, Path] | None = None) -> None:
    try:
        async with by_tls(server, trusted, shows) as client:
            if server.transport == "grpc":
                export = client.channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")
                await export(GOOD, timeout=3)
                raise AssertionError("it got in")
            await client.write(head("/v1/logs", {"Content-Type": "application/x-protobuf", "Content-Length": str(len(GOOD))}) + GOOD)
            assert await client.closed() == b""
    except (OSError, grpc.aio.AioRpcError):  # the handshake failed
        pass
    assert server.intake.arrivals == []


# --- tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["old", "new"])
async def test_two_tokens_are_valid_at_once(tmp_path: Path, transport: Transport, token: str) -> None:
    async with running(transport, tmp_path, token=["old", "new"]) as server, connected(server, token=token) as client:
        assert (await client.send("logs", GOOD)).code == "OK"


@pytest.mark.parametrize("token", ["", "wrong", "old new"])
async def test_without_a_valid_token_nobody_gets_in_and_no_token_is_told(
    tmp_path: Path, transport: Transport, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(transport, tmp_path, token=["old", "new"]) as server, connected(server, token=token) as client:
        for _ in range(3):
            reply = await client.send("logs", GOOD)
            assert (reply.code, reply.retry_after_s) == ("UNAUTHENTICATED", 0)
        if transport == "http":
            assert reply.headers["www-authenticate"] == "Bearer"
        assert server.intake.arrivals == []
        assert server.metric("otlp_received_requests_total", signal="logs", code="UNAUTHENTICATED") == 3
    lines = [line for line in caplog.messages if "no valid token" in line]
    assert len(lines) == 1, "one line in a while, not one a request"
    assert "127.0.0.1" in lines[0]
    assert "wrong" not in caplog.text


async def test_a_body_without_a_valid_token_is_refused_before_it_comes(tmp_path: Path) -> None:
    async with running("http", tmp_path, token="s3cret") as server, connected(server) as client:
        await client.write(head("/v1/logs", {"Content-Type": "application/x-protobuf", "Content-Length": "60000000"}))
        assert (await client.answer())[0] == 401
        assert server.otlp.held_bytes == 0


async def test_a_message_without_a_valid_token_is_refused_before_it_comes(tmp_path: Path) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    async with running("grpc", tmp_path, token="s3cret") as server, connected(server) as client:
        call = client.channel.stream_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")(never(), timeout=PATIENCE_S)
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await call
        assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_name_of_a_clients_own_token_is_kept_with_what_it_sent_that_was_invalid(tmp_path: Path, transport: Transport) -> None:
    async with (
        running(transport, tmp_path, client_tokens={"ci": "one", "gpu-7": "two"}) as server,
        connected(server, token="two") as client,
    ):
        assert (await client.send("traces", encoded(BAD_ITEM))).rejected == 1
        (letter,) = server.intake.dead
        assert letter.peer.startswith("gpu-7 (")
        assert "127.0.0.1" in letter.peer


async def test_a_reload_reads_the_tokens_again(tmp_path: Path, transport: Transport) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    async with running(transport, tmp_path, token={"file": str(file)}) as server:
        file.write_text("second")
        await server.receiver.reload()
        for token, wanted in (("first", "UNAUTHENTICATED"), ("second", "OK")):
            async with connected(server, token=token) as client:
                assert (await client.send("logs", GOOD)).code == wanted


async def test_a_token_file_that_is_missing_is_an_error_that_names_it(tmp_path: Path, transport: Transport) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with running(transport, tmp_path, token={"file": str(tmp_path / "missing")}):
            pass
    error = caught.value.exceptions[0]
    assert isinstance(error, ConfigError)
    assert f"otlp_{transport}: token" in str(error)
    assert "missing" in str(error)


# --- TLS --------------------------------------------------------------------------------------------


async def test_requests_come_over_tls(tmp_path: Path, transport: Transport, certificates: Certificates) -> None:
    async with running(transport, tmp_path, tls=certificates.server()) as server, by_tls(server, certificates) as client:
        for _ in range(3):
            assert (await client.send("logs", encoded(request("logs", 5000)))).code == "OK"
        assert server.intake.received == 15_000


async def test_with_a_client_authority_only_its_clients_get_in_and_their_name_is_known(
    tmp_path: Path, transport: Transport, certificates: Certificates
) -> None:
    (tmp_path / "other").mkdir()
    stranger = Certificates(tmp_path / "other")
    async with running(transport, tmp_path, tls=certificates.server(mutual=True)) as server:
        await does_not_get_in(server, certificates)
        await does_not_get_in(server, certificates, stranger.issue("stranger", "worker.example"))
        async with by_tls(server, certificates, certificates.issue("client", "worker.example")) as client:
            assert (await client.send("traces", encoded(BAD_ITEM))).rejected == 1
            (letter,) = server.intake.dead
            assert letter.peer.startswith("worker.example (")


async def test_a_client_whose_certificate_has_expired_does_not_get_in(
    tmp_path: Path, transport: Transport, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    expired = certificates.issue("client", "worker.example", not_after=datetime.now(UTC) - timedelta(days=1))
    async with running(transport, tmp_path, tls=certificates.server(mutual=True)) as server:
        await does_not_get_in(server, certificates, expired)
        if transport == "http":  # gRPC does not tell why a handshake failed
            assert any("certificate verify failed: certificate has expired" in line for line in caplog.messages)


async def test_a_renewed_certificate_is_shown_after_a_reload_and_open_connections_stay(
    tmp_path: Path, transport: Transport, certificates: Certificates
) -> None:
    async with running(transport, tmp_path, tls=certificates.server()) as server, by_tls(server, certificates) as old:
        assert (await old.send("logs", GOOD)).code == "OK"
        (tmp_path / "old").mkdir()
        former = Certificates(tmp_path / "old")
        former.ca_file.write_bytes(certificates.ca_file.read_bytes())
        other = Certificates(tmp_path)  # the same files, another authority
        other.issue("server")
        await server.receiver.reload()
        async with by_tls(server, other) as new:
            assert (await new.send("logs", GOOD)).code == "OK"
        assert (await old.send("logs", GOOD)).code == "OK"
        received = server.intake.received
        server.intake.arrivals.clear()
        await does_not_get_in(server, former)
        assert received == 9


async def test_a_certificate_that_cannot_be_read_is_an_error_that_names_the_file(
    tmp_path: Path, transport: Transport, certificates: Certificates
) -> None:
    cert, key = certificates.issue("server")
    key.write_text("no key")
    with pytest.raises(ExceptionGroup) as caught:
        async with running(transport, tmp_path, tls=TlsServerConfig(cert_file=cert, key_file=key)):
            pass
    error = caught.value.exceptions[0]
    assert isinstance(error, ConfigError)
    assert error.kind is ErrorKind.TLS_FILES
    assert str(key) in str(error)
    assert f"otlp_{transport}: tls" in str(error)


async def test_a_plain_client_on_the_tls_port_gets_nothing_in(tmp_path: Path, transport: Transport, certificates: Certificates) -> None:
    async with running(transport, tmp_path, tls=certificates.server()) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(head("/v1/logs", {"Content-Type": "application/x-protobuf", "Content-Length": str(len(GOOD))}) + GOOD)
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        assert server.intake.arrivals == []
        async with by_tls(server, certificates) as client:
            assert (await client.send("logs", GOOD)).code == "OK"


async def test_a_tls_client_on_the_plain_port_is_told_so_in_its_own_protocol(tmp_path: Path, certificates: Certificates) -> None:
    async with running("http", tmp_path) as server:
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            async with by_tls(server, certificates):
                pass


async def test_a_client_that_never_begins_tls_is_closed_after_its_time(tmp_path: Path, certificates: Certificates) -> None:
    async with running("http", tmp_path, tls=certificates.server(), head_timeout_s=0.1) as server, connected(server) as client:
        assert await client.closed(OtlpHttpConfig().head_timeout_s * 0.8) == b""
        assert server.receiver._service.places.taken == 0


async def test_a_client_whose_tls_fails_leaves_nothing_behind_that_a_stop_would_wait_for(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with running("http", tmp_path, tls=certificates.server(), stop_within_s=1) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
            service = server.receiver._service
            while service.places.taken:  # noqa: ASYNC110 — nothing tells the end of a handshake
                await asyncio.sleep(0.01)
        assert not service.connections


# --- addresses --------------------------------------------------------------------------------------

ANY = [("0.0.0.0", 4318), ("::", 4318)]  # noqa: S104 — this is what is tested
LOOPBACK = [("127.0.0.1", 4318), ("::1", 4318)]


@pytest.mark.parametrize("config", [OtlpHttpConfig, OtlpGrpcConfig])
def test_a_port_alone_is_loopback_unless_a_token_or_a_client_certificate_is_asked_for(config: Any) -> None:
    server_only = {"cert_file": "/c", "key_file": "/k"}
    for settings, wanted in (
        ({}, LOOPBACK),
        ({"tls": server_only}, LOOPBACK),
        ({"tls": server_only | {"client_ca_file": "/a"}}, ANY),
        ({"token": "t"}, ANY),
        ({"client_tokens": {"ci": "t"}}, ANY),
    ):
        assert addresses("4318", guarded=config(**settings).is_guarded) == wanted
    assert addresses("*:4318", guarded=False) == ANY


@pytest.mark.parametrize("listen", [["4318", "x:y"], "70000", ["http://127.0.0.1:4318"], []])
@pytest.mark.parametrize("config", [OtlpHttpConfig, OtlpGrpcConfig])
def test_an_address_that_is_none_is_refused(config: Any, listen: Any) -> None:
    with pytest.raises(ValueError, match="listen"):
        config(listen=listen)


def test_a_budget_smaller_than_the_largest_request_is_refused() -> None:
    with pytest.raises(ValueError, match="max_total_bytes"):
        OtlpHttpConfig(max_total_bytes=1000)


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/path", "https://a, https://b", "https://a\r\nX: 1"])
def test_an_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="no origin"):
        OtlpHttpConfig.model_validate({"cors": {"allowed_origins": [origin]}})


async def test_a_port_alone_listens_on_both_kinds_of_loopback(tmp_path: Path, transport: Transport) -> None:
    async with running(transport, tmp_path, listen="0") as server:
        hosts = [host for host, _ in server.receiver.addresses]
        assert hosts[0] == "127.0.0.1"
        assert len({port for _, port in server.receiver.addresses}) == 1
        for host in hosts:
            server.receiver.addresses = [(host, server.address[1])]
            if server.transport == "grpc" and ":" in host:
                server.receiver.addresses = [(f"[{host}]", server.address[1])]
            async with connected(server) as client:
                assert (await client.send("logs", GOOD)).code == "OK"
