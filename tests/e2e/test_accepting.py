"""Promises of whatever accepts connections, over each receiver that uses it: who does not get in is named with the reason and leaves
nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.receivers.forward_accept import ForwardDoor
from emp_pipe.receivers.otlp_http import _Service
from tests.support import forward, otlp_receiving
from tests.support.forward import PATIENCE_S, Certificates

DOORS: dict[str, Any] = {"forward": ForwardDoor, "otlp_http": _Service}
HANDSHAKE_LIMITS = {"forward": "handshake_timeout_s", "otlp_http": "head_timeout_s"}


@pytest.fixture(params=list(DOORS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def opened(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The connections that were opened for peers that had a place."""
    connections: list[Any] = []
    door = DOORS[kind]
    open_one = door.open

    def recorded(self: Any, address: str) -> Any:
        connections.append(open_one(self, address))
        return connections[-1]

    monkeypatch.setattr(door, "open", recorded)
    yield connections
    connections.clear()


@contextlib.asynccontextmanager
async def listening(kind: str, directory: Path, **settings: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Run a receiver; yield its address and what gives out the places."""
    if kind == "forward":
        async with forward.running(directory, **settings) as server:
            yield server.address, server.receiver._hub.places
    else:
        async with otlp_receiving.running("http", directory, **settings) as server:
            yield server.address, server.receiver._service.places


async def begins_tls(address: Any, certificates: Certificates, shows: tuple[Path, Path] | None = None) -> None:
    """Shake hands as a client, and wait until the server closes, which without a fitting certificate it does."""
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    if shows is not None:
        context.load_cert_chain(*shows)
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname="localhost")
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()


async def ended(connections: list[Any], count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(connections) < count:  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.005)
        for connection in connections:
            await connection.closed.wait()


async def test_why_a_certificate_was_not_taken_is_in_the_log(
    tmp_path: Path, kind: str, opened: list[Any], certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    expired = certificates.issue("client", "worker.example", not_after=datetime.now(UTC) - timedelta(days=1))
    async with listening(kind, tmp_path, tls=certificates.server(mutual=True)) as (address, _):
        await begins_tls(address, certificates, expired)
        await ended(opened, 1)
    assert [line for line in caplog.messages if "certificate verify failed: certificate has expired" in line]


async def test_a_peer_whose_tls_fails_gives_its_place_back_and_nobody_waits_for_its_end(
    tmp_path: Path, kind: str, opened: list[Any], certificates: Certificates
) -> None:
    async with listening(kind, tmp_path, tls=certificates.server(mutual=True), max_connections=1) as (address, places):
        for number in (1, 2):
            await begins_tls(address, certificates)
            await ended(opened, number)
            assert (places.taken, places._by_address) == (0, {})


async def test_a_peer_that_never_begins_tls_gives_its_place_back_and_nobody_waits_for_its_end(
    tmp_path: Path, kind: str, opened: list[Any], certificates: Certificates
) -> None:
    async with listening(kind, tmp_path, tls=certificates.server(), **{HANDSHAKE_LIMITS[kind]: 0.1}) as (address, places):
        reader, writer = await asyncio.open_connection(*address)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()
        await ended(opened, 1)
        assert places.taken == 0


async def test_a_stop_ends_a_tls_handshake_that_is_under_way(
    tmp_path: Path, kind: str, opened: list[Any], certificates: Certificates
) -> None:
    async with asyncio.timeout(PATIENCE_S):  # far less than the handshake may take
        async with listening(kind, tmp_path, tls=certificates.server(), **{HANDSHAKE_LIMITS[kind]: 600.0}) as (address, places):
            reader, writer = await asyncio.open_connection(*address)
            while not opened:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.005)
        await ended(opened, 1)
        assert places.taken == 0
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def drips_a_tls_handshake(address: Any) -> bytes:
    """Send a client's first message byte by byte; return what the server says until it has closed."""
    begins = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), begins, server_hostname="localhost").do_handshake()
    reader, writer = await asyncio.open_connection(*address)

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in begins.read():
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)

    dripping = asyncio.ensure_future(drip())
    try:
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                return await reader.read()
    finally:
        dripping.cancel()
        writer.close()
    return b""


async def test_a_peer_that_drips_its_tls_handshake_is_closed_after_its_time_and_counted(
    tmp_path: Path, kind: str, opened: list[Any], certificates: Certificates
) -> None:
    async with listening(kind, tmp_path, tls=certificates.server(), **{HANDSHAKE_LIMITS[kind]: 0.5}) as (address, places):
        assert await drips_a_tls_handshake(address) == b""
        await ended(opened, 1)
        assert places.taken == 0
