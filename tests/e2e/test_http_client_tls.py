"""The HTTP client over TLS: who shows what certificate, what a renewed one does, and that bodies go out in pieces; on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from emp_pipe.component import Parcel
from emp_pipe.errors import DeliveryError, ErrorKind
from emp_pipe.exporters.otlp_http import OtlpHttpConfig, OtlpHttpExporter
from emp_pipe.tls import TlsClientConfig, WatchedContext, common_name
from tests.support.context import make_context
from tests.support.http_client import LARGE, SMALL, Client, until
from tests.support.manual_clock import ManualClock
from tests.support.otlp_receiving import running
from tests.support.scripted_http import Conversation, ScriptedServer, says
from tests.support.telemetry import log_block


@dataclass
class Authority:
    """Who signs the certificates of both sides."""

    folder: Path
    ca: trustme.CA

    def server(self, *, asks: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert("otlp.example").configure_cert(context)
        if asks:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def write_client(self, name: str) -> None:
        issued = self.ca.issue_cert(f"{name}.example", common_name=name)
        issued.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(self.folder / "cert.pem"))

    @property
    def config(self) -> dict[str, Any]:
        return {"ca_file": self.folder / "ca.pem", "server_name": "otlp.example"}

    @property
    def with_certificate(self) -> dict[str, Any]:
        return {**self.config, "cert_file": self.folder / "cert.pem", "key_file": self.folder / "key.pem"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path, trustme.CA())
    made.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return made


@contextlib.asynccontextmanager
async def talking(server_tls: ssl.SSLContext, settings: dict[str, Any], clock: Any = None) -> AsyncIterator[tuple[ScriptedServer, Client]]:
    clock = clock or ManualClock()
    tls = WatchedContext.of_client(TlsClientConfig.model_validate(settings), clock, "test")
    async with ScriptedServer(tls=server_tls) as server:
        client = Client(server, clock=clock, tls=tls, server_name=settings.get("server_name"))
        try:
            yield server, client
        finally:
            await client.http.close()


async def test_a_server_that_asks_gets_the_certificate_and_one_without_is_turned_away(authority: Authority) -> None:
    authority.write_client("gpu-1")
    async with talking(authority.server(asks=True), authority.with_certificate) as (server, client):
        await client.good(server)
        assert common_name(server.certificates[0]) == "gpu-1"
    async with talking(authority.server(asks=True), authority.config) as (server, client):
        assert (await client.error()).kind is ErrorKind.UNREACHABLE
        assert not server.requests


async def test_a_renewed_certificate_is_shown_at_the_next_request_and_connections_of_the_old_one_close(
    authority: Authority,
) -> None:
    clock = ManualClock()
    authority.write_client("old")
    async with talking(authority.server(asks=True), authority.with_certificate, clock) as (server, client):
        await client.good(server)
        authority.write_client("renewed")
        clock.advance(6.0)
        await client.good(server)
        assert [common_name(one) for one in server.certificates] == ["old", "renewed"]
        clock.advance(1.0)
        await until(lambda: server.open_connections == 1)


async def test_a_name_or_an_authority_that_is_not_the_expected_one_is_refused_with_advice(authority: Authority) -> None:
    for settings in ({**authority.config, "server_name": "other.example"}, {"server_name": "otlp.example"}):
        async with talking(authority.server(), settings) as (server, client):
            error = await client.error()
            assert (error.kind, "certificate not accepted" in str(error), "tls.ca_file" in str(error)) == (
                ErrorKind.UNREACHABLE,
                True,
                True,
            )
            assert not server.requests


async def test_a_port_without_tls_says_so(authority: Authority) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    plain_server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with plain_server, talking(authority.server(), authority.config) as (server, client):
        there, server.port = server.port, plain_server.sockets[0].getsockname()[1]
        target, client.target = client.target, Client(server).target
        assert "check that the port speaks TLS" in str(await client.error())
        server.port, client.target = there, target
        await client.good(server)


async def test_over_tls_a_large_request_waits_unencrypted_until_there_is_room_and_arrives_whole(authority: Authority) -> None:
    reads_on = asyncio.Event()

    async def reads_late(conversation: Conversation) -> None:
        conversation.writer.transport.pause_reading()
        await reads_on.wait()
        conversation.writer.transport.resume_reading()
        await conversation.body()
        await conversation.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with talking(authority.server(), authority.config) as (server, client):
        await client.good(server)
        server.script(reads_late)
        larger = memoryview(bytes(LARGE) * 4)  # more than any kernel takes unread
        task = asyncio.create_task(client.post(larger))
        await until(lambda: len(server.requests) == 2)
        (link,) = client.http._links
        await until(lambda: link._is_full)
        assert len(link._rest) > 1 << 20, "what the sockets do not take has not been encrypted yet"
        reads_on.set()
        assert (await task).status == 200
        assert server.requests[-1].body == larger
        assert await client.good(server) == 1


async def test_over_tls_too_an_early_refusal_is_the_answer_and_an_early_success_is_none(authority: Authority) -> None:
    def early(status: bytes) -> Any:
        async def behave(conversation: Conversation) -> None:
            conversation.writer.transport.pause_reading()
            await conversation.say(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
            await asyncio.Event().wait()

        return behave

    async with talking(authority.server(), authority.config) as (server, client):
        server.script(early(b"413 Too Large"))
        assert (await client.post(LARGE)).status == 413
        server.script(early(b"200 OK"))
        assert (await client.error(LARGE)).kind is ErrorKind.SERVER_ERROR
        await client.good(server)


async def test_over_tls_a_kept_connection_that_ends_sends_the_request_again(authority: Authority) -> None:
    async def closes(conversation: Conversation) -> None:
        conversation.writer.transport.abort()

    async with talking(authority.server(), authority.config) as (server, client):
        await client.good(server)
        server.script(closes)
        assert (await client.good(server), client.resent) == (2, 1)
        server.script(says(b"HTTP/1.1 200 OK\r\n\r\nto the end", then_closes=True))
        assert (await client.post(SMALL)).body == b"to the end"


@pytest.mark.parametrize("rows", [1, 3_000, 30_000])
async def test_a_request_of_any_length_goes_from_our_client_to_our_receiver(authority: Authority, tmp_path: Path, rows: int) -> None:
    issued = authority.ca.issue_cert("otlp.example")
    issued.private_key_pem.write_to_path(str(tmp_path / "server-key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    tls = {"cert_file": tmp_path / "server.pem", "key_file": tmp_path / "server-key.pem"}
    async with running("http", tmp_path, tls=tls) as server:
        port = server.address[1]
        config = OtlpHttpConfig(endpoint=f"https://127.0.0.1:{port}", tls=authority.config, compression="none")  # type: ignore[arg-type]
        exporter = OtlpHttpExporter("otlp_http", config, make_context())
        await exporter.open()
        for _ in range(3):
            block = log_block([f"row {index} {'x' * 100}" for index in range(rows)], codec="none")
            assert (await exporter.send(Parcel(block, 1, 0.0))).rejected_records == 0
        await exporter.close(0.0)
        assert sum(arrival.received for arrival in server.intake.arrivals) == 3 * rows


async def test_an_https_address_never_goes_out_in_the_clear(authority: Authority) -> None:
    async with ScriptedServer(tls=authority.server()) as server:
        client = Client(server)
        with pytest.raises(ValueError, match="needs `tls`"):
            await client.post()
        assert server.connections == 0
        with contextlib.suppress(DeliveryError):
            await client.http.close()
