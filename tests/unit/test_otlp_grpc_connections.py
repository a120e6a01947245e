"""What the gRPC exporter does when connections fail, lead nowhere, or need other certificates: it says so in time, and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from emp_pipe.clock import Clock
from emp_pipe.component import Parcel, Sent
from emp_pipe.errors import ConfigError, DeliveryError, ErrorKind, Retry
from emp_pipe.exporters.otlp_grpc import OtlpGrpcConfig, OtlpGrpcExporter
from tests.support.context import make_context
from tests.support.delivering import delivering
from tests.support.destinations import Outage
from tests.support.manual_clock import ManualClock
from tests.support.otlp_grpc_endpoint import GrpcAnswer, OtlpGrpcEndpoint
from tests.support.telemetry import log_block


@contextlib.asynccontextmanager
async def exporting(address: str, clock: Clock | None = None, **settings: Any) -> AsyncIterator[OtlpGrpcExporter]:
    exporter = OtlpGrpcExporter("otlp_grpc", OtlpGrpcConfig(endpoint=address, **settings), make_context(clock))
    await exporter.open()
    try:
        yield exporter
    finally:
        await exporter.close(0.0)


@contextlib.asynccontextmanager
async def through_a_relay() -> AsyncIterator[tuple[OtlpGrpcEndpoint, Outage, OtlpGrpcExporter]]:
    async with (
        OtlpGrpcEndpoint() as endpoint,
        Outage(endpoint.port).running() as relay,
        exporting(f"http://127.0.0.1:{relay.port}") as exporter,
    ):
        yield endpoint, relay, exporter


async def send(exporter: OtlpGrpcExporter, within_s: float = 10.0) -> Sent:
    return await exporter.send(Parcel(log_block(3), 1, exporter._clock.monotonic_s() + within_s))


async def error_of(exporter: OtlpGrpcExporter, within_s: float = 10.0) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await send(exporter, within_s)
    return caught.value


# --- connections --------------------------------------------------------------------------------------


async def test_a_broken_connection_is_unreachable_and_the_next_call_gets_a_new_one() -> None:
    async with (
        OtlpGrpcEndpoint() as endpoint,
        Outage(endpoint.port).running() as relay,
        exporting(f"http://127.0.0.1:{relay.port}") as exporter,
    ):
        await send(exporter)
        endpoint.script(GrpcAnswer(delay_s=600.0))
        sending = asyncio.ensure_future(error_of(exporter))
        await endpoint.wait_until(lambda: endpoint.in_flight == 1)
        relay.break_connections()
        error = await sending
        assert (error.kind, error.retry) == (ErrorKind.UNREACHABLE, Retry.LATER)
        await send(exporter)
        assert len(endpoint.received) == 2


async def test_after_an_outage_the_first_call_gets_through_without_waiting_for_grpcs_own_pace() -> None:
    async with (
        OtlpGrpcEndpoint() as endpoint,
        Outage(endpoint.port).running() as relay,
        exporting(f"http://127.0.0.1:{relay.port}") as exporter,
    ):
        relay.away = True
        for _ in range(20):  # by then grpcio itself would wait for seconds
            assert (await error_of(exporter)).kind is ErrorKind.UNREACHABLE
        relay.away = False
        await send(exporter)


async def test_calls_at_the_same_time_share_the_connection_that_takes_a_broken_ones_place() -> None:
    async with through_a_relay() as (endpoint, relay, exporter):
        relay.away = True
        failed = await asyncio.gather(*(send(exporter) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(error, DeliveryError) for error in failed)
        relay.away = False
        await asyncio.gather(*(send(exporter) for _ in range(20)))
        assert len(endpoint.received) == 20
        assert len(endpoint.peers) == 1
        assert exporter._replaced == [], "a channel that nobody uses any more was not closed"


async def test_what_a_server_says_is_short_and_printable_in_the_error() -> None:
    async with OtlpGrpcEndpoint() as endpoint, exporting(endpoint.url) as exporter:
        endpoint.script(GrpcAnswer("INVALID_ARGUMENT", "\x1b[31m" + "ü" * 2000))
        error = await error_of(exporter)
        assert len(str(error)) < 1000
        assert str(error).isprintable()


async def test_a_server_that_is_restarted_gets_the_next_call() -> None:
    endpoint = OtlpGrpcEndpoint()
    async with endpoint:
        address = endpoint.url
        async with exporting(address) as exporter:
            await send(exporter)
            await endpoint.__aexit__()
            assert (await error_of(exporter)).kind is ErrorKind.UNREACHABLE
            async with OtlpGrpcEndpoint(port=endpoint.port) as again:
                await send(exporter)
                assert len(again.received) == 1


async def test_a_goaway_lets_the_call_under_way_end_and_the_next_one_finds_the_new_server() -> None:
    old = OtlpGrpcEndpoint()
    await old.__aenter__()
    async with exporting(old.url) as exporter:
        await send(exporter)
        old.script(GrpcAnswer(delay_s=0.3))
        under_way = asyncio.ensure_future(send(exporter))
        await old.wait_until(lambda: old.in_flight == 1)
        await old._server.stop(10.0)  # says GOAWAY, waits for what is under way
        await under_way
        async with OtlpGrpcEndpoint(port=old.port) as new:
            await send(exporter)
            assert len(new.received) == 1


async def test_an_address_where_nothing_speaks_ends_at_the_parcels_deadline() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                pass
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with server, exporting(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as exporter:
        began_s = time.monotonic()
        error = await error_of(exporter, within_s=0.4)
        assert (error.kind, error.retry) == (ErrorKind.TIMED_OUT, Retry.LATER)
        assert time.monotonic() - began_s < 5.0


async def test_a_connection_that_leads_nowhere_any_more_is_replaced_after_two_calls_without_an_answer() -> None:
    """As behind a NAT that forgot it: no byte comes back, and TCP itself would try for a quarter of an hour."""
    swallowing = False

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        born_swallowing = swallowing
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", endpoint.port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65_536):
                    if swallowing and not born_swallowing:
                        continue
                    target.write(data)
            target.close()

        await asyncio.gather(pump(reader, onward_writer), pump(onward_reader, writer))

    async with OtlpGrpcEndpoint() as endpoint:
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with server, exporting(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as exporter:
            await send(exporter)
            swallowing = True
            for _ in range(2):
                assert (await error_of(exporter, within_s=0.3)).kind is ErrorKind.TIMED_OUT
            await send(exporter)
        server.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail.example ESMTP\r\n", b"\x00" * 1000, b""])
async def test_a_peer_that_speaks_something_else_is_tried_again_later(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(24)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, exporting(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as exporter:
        error = await error_of(exporter)
    assert error.retry is Retry.LATER
    assert len(str(error)) < 1000


async def test_a_stop_ends_within_its_deadline_while_the_server_never_answers() -> None:
    async with OtlpGrpcEndpoint() as endpoint:
        endpoint.always(GrpcAnswer(never=True))
        exporter = OtlpGrpcExporter("otlp_grpc", OtlpGrpcConfig(endpoint=endpoint.url), make_context())
        async with delivering(exporter) as subject:  # whose end is a stop with a deadline of a second
            await subject.append([log_block(10)])
            await subject.until(lambda: endpoint.in_flight == 1)
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 5.0
        assert (await subject.books()).held == 10


async def test_a_closed_exporter_sends_nothing_and_says_so() -> None:
    async with exporting("http://127.0.0.1:9") as exporter:
        pass
    assert (await error_of(exporter)).kind is ErrorKind.UNREACHABLE


# --- TLS ----------------------------------------------------------------------------------------------


class Certificates:
    """Files of one authority in a directory: `ca.pem`, and a certificate and key by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(directory / "ca.pem"))

    def issue(self, name: str, file: str) -> dict[str, Path]:
        issued = self.authority.issue_cert(name)
        issued.private_key_pem.write_to_path(str(self.directory / f"{file}.key"))
        (self.directory / f"{file}.pem").write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        return {"cert_file": self.directory / f"{file}.pem", "key_file": self.directory / f"{file}.key"}

    def server(self, name: str = "otlp.example", *, clients: bytes | None = None) -> Any:
        issued = self.authority.issue_cert(name)
        pair = (issued.private_key_pem.bytes(), b"".join(one.bytes() for one in issued.cert_chain_pems))
        return grpc.ssl_server_credentials([pair], clients, clients is not None)

    @property
    def ca(self) -> dict[str, Any]:
        return {"ca_file": self.directory / "ca.pem", "server_name": "otlp.example"}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def test_over_tls_the_certificate_and_its_name_are_checked(certificates: Certificates) -> None:
    async with OtlpGrpcEndpoint(credentials=certificates.server()) as endpoint:
        async with exporting(endpoint.url, tls=certificates.ca) as exporter:
            await send(exporter)
        assert len(endpoint.received) == 1
        unknown_authority = {"server_name": "otlp.example"}
        other_name = {"ca_file": certificates.ca["ca_file"]}
        for settings in (unknown_authority, other_name):
            async with exporting(endpoint.url, tls=settings) as exporter:
                error = await error_of(exporter)
            assert (error.kind, error.retry) == (ErrorKind.UNREACHABLE, Retry.LATER)
            assert "tls.ca_file" in error.advice, str(error)
        assert len(endpoint.received) == 1


async def test_a_certificate_is_not_checked_where_the_setting_says_so(certificates: Certificates) -> None:
    async with (
        OtlpGrpcEndpoint(credentials=certificates.server()) as endpoint,
        exporting(endpoint.url, tls={"insecure_skip_verify": True}) as exporter,
    ):
        await send(exporter)
        assert len(endpoint.received) == 1


async def test_a_server_that_asks_for_a_certificate_gets_ours(certificates: Certificates) -> None:
    clients = certificates.authority.cert_pem.bytes()
    async with OtlpGrpcEndpoint(credentials=certificates.server(clients=clients)) as endpoint:
        async with exporting(endpoint.url, tls=certificates.ca) as exporter:
            assert (await error_of(exporter)).kind is ErrorKind.UNREACHABLE
        async with exporting(endpoint.url, tls=certificates.ca | certificates.issue("edge", "client")) as exporter:
            await send(exporter)
        assert len(endpoint.received) == 1


async def test_certificates_that_change_on_disk_are_used_without_a_restart_and_broken_ones_are_not(certificates: Certificates) -> None:
    clock = ManualClock()
    ca_file = certificates.directory / "ca.pem"
    right = ca_file.read_bytes()
    ca_file.write_bytes(trustme.CA().cert_pem.bytes())
    async with (
        OtlpGrpcEndpoint(credentials=certificates.server()) as endpoint,
        exporting(endpoint.url, clock, tls=certificates.ca) as exporter,
    ):
        assert (await error_of(exporter)).kind is ErrorKind.UNREACHABLE
        ca_file.write_bytes(right)
        clock.advance(10.0)
        await send(exporter)
        ca_file.write_bytes(b"half a certif")
        clock.advance(10.0)
        await send(exporter)
        assert len(endpoint.received) == 2
        assert len(endpoint.peers) == 1, "the connection stays as long as its certificates do"


async def test_calls_under_way_end_on_the_old_connection_when_certificates_change(certificates: Certificates) -> None:
    clock = ManualClock()
    ca_file = certificates.directory / "ca.pem"
    async with (
        OtlpGrpcEndpoint(credentials=certificates.server()) as endpoint,
        exporting(endpoint.url, clock, tls=certificates.ca) as exporter,
    ):
        endpoint.script(GrpcAnswer(delay_s=0.3))
        under_way = asyncio.ensure_future(send(exporter))
        await endpoint.wait_until(lambda: endpoint.in_flight == 1)
        ca_file.write_bytes(ca_file.read_bytes() + trustme.CA().cert_pem.bytes())
        clock.advance(10.0)
        await send(exporter)
        await under_way
        assert (len(endpoint.received), len(endpoint.peers)) == (2, 2)


@pytest.mark.parametrize("file", ["ca_file", "cert_file", "key_file"])
async def test_a_certificate_file_that_cannot_be_used_is_named_at_start(certificates: Certificates, file: str) -> None:
    tls = certificates.ca | certificates.issue("edge", "client")
    tls[file].write_text("nothing of use")
    with pytest.raises(ConfigError) as caught:
        async with exporting("https://127.0.0.1:9", tls=tls):
            pass
    assert caught.value.kind is ErrorKind.TLS_FILES
    assert tls[file].name in str(caught.value)
