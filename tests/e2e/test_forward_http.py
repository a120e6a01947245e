"""Promises of the Forward receiver's port to those who speak HTTP there: both protocols side by side, and who gets in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.support.forward import PATIENCE_S, Certificates, Running, message_frame, running

ONE = b'{"message":"one","job_id":"job-7"}'
KEY = {"shared_key": ["key"]}
TOKEN = {"http": {"token": ["s3cret"]}}


async def connect(server: Running, **tls: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*server.receiver.addresses[0], **tls)


def request(body: bytes = ONE, *headers: str, path: str = "/app/web") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def answer_to(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.splitlines() if line.lower().startswith(b"content-length")]
        assert head.startswith(b"HTTP/1.1 "), head
        return int(head.split()[1]), await reader.readexactly(int(lengths[0]))


async def post(server: Running, *headers: str, body: bytes = ONE, **tls: Any) -> int:
    reader, writer = await connect(server, **tls)
    writer.write(request(body, *headers))
    status, _ = await answer_to(reader)
    writer.close()
    return status


@pytest.mark.parametrize("cut_bytes", [1, 5, 1 << 20])
async def test_forward_and_http_work_on_one_port(tmp_path: Path, cut_bytes: int) -> None:
    async with running(tmp_path) as server:
        reader, writer = await connect(server)
        wire = request() + request(b'[{"message":"two"},{"message":"three"}]')
        for at in range(0, len(wire), cut_bytes):
            writer.write(wire[at : at + cut_bytes])
            await writer.drain()
        assert await answer_to(reader) == (200, b'{"refused": 0}')
        assert await answer_to(reader) == (200, b'{"refused": 0}')
        writer.close()
        reader, writer = await connect(server)
        writer.write(message_frame(7, chunk="c"))
        async with asyncio.timeout(PATIENCE_S):
            assert b"ack" in await reader.read(100)
        writer.close()
        rows = server.intake.rows()
    assert [row.body for row in rows] == ["one", "two", "three", "record 7"]
    assert [row.tag for row in rows] == ["app.web"] * 4
    assert rows[0].attributes["job_id"] == "job-7"


async def test_an_answer_comes_when_the_records_are_durable(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        server.intake.auto = False
        asking = asyncio.ensure_future(post(server))
        async with asyncio.timeout(PATIENCE_S):
            while not server.intake.waiting:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.005)
        assert not asking.done()
        server.intake.commit()
        assert await asking == 200


async def test_who_comes_by_http_while_the_log_is_full_is_read_again_on_the_same_connection(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        server.intake.admit(False)
        with socket.create_connection(server.receiver.addresses[0]) as early:  # its request is there when it is accepted
            early.sendall(request())
            await asyncio.sleep(0.1)
            server.intake.admit(True)
            reader, writer = await asyncio.open_connection(sock=early)
            assert (await answer_to(reader))[0] in (200, 503), "it waited, or is told to come again"
            for _ in range(3):
                writer.write(request())
                assert (await answer_to(reader))[0] == 200
            writer.close()


async def test_a_body_and_requests_of_any_size_behind_one_another_are_read(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        reader, writer = await connect(server)
        big = json.dumps([{"message": "x" * 1000}] * 3000).encode()
        writer.write(request(big) + request() * 500)
        for _ in range(501):
            assert (await answer_to(reader))[0] == 200
        writer.close()
        assert server.intake.received == 3500


async def test_with_a_shared_key_and_no_token_http_is_refused_and_the_helo_does_not_wait(tmp_path: Path) -> None:
    async with running(tmp_path, **KEY, http={"helo_wait_ms": 3_600_000}) as server:
        reader, writer = await connect(server)
        async with asyncio.timeout(PATIENCE_S):
            assert b"HELO" in await reader.read(100)
        writer.write(request(ONE, "Authorization: Bearer key"))
        async with asyncio.timeout(PATIENCE_S):
            assert b"400 Bad Request" in await reader.read()
        assert server.intake.arrivals == []


async def test_with_a_shared_key_only_a_token_gets_http_in_and_no_helo_comes_before_its_answer(tmp_path: Path) -> None:
    async with running(tmp_path, **KEY, **TOKEN) as server:
        assert await post(server) == 401
        assert await post(server, "Authorization: Bearer key") == 401
        assert server.intake.arrivals == []
        assert await post(server, "Authorization: Bearer s3cret") == 200
        assert [row.body for row in server.intake.rows()] == ["one"]


async def test_with_a_shared_key_and_a_token_who_waits_for_the_helo_gets_it(tmp_path: Path) -> None:
    async with running(tmp_path, **KEY, **TOKEN) as server:
        reader, writer = await connect(server)
        async with asyncio.timeout(PATIENCE_S):
            assert b"HELO" in await reader.read(100)
        writer.write(request(ONE, "Authorization: Bearer s3cret"))
        async with asyncio.timeout(PATIENCE_S):
            assert b"400 Bad Request" in await reader.read(), "after the HELO it is too late for HTTP"
        assert server.intake.arrivals == []


async def test_a_token_without_a_key_is_asked_of_http(tmp_path: Path) -> None:
    async with running(tmp_path, **TOKEN) as server:
        assert await post(server) == 401
        assert await post(server, "Authorization: Bearer s3cret") == 200


async def test_web_pages_may_not_send(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        assert await post(server, "Origin: https://example.com") == 403
        assert server.intake.arrivals == []


async def test_a_source_that_may_not_come_gets_no_http_either(tmp_path: Path) -> None:
    settings = {"clients": [{"network": "192.0.2.0/24", "shared_key": ["k"]}], "allow_anonymous_source": False}
    async with running(tmp_path, **settings, **TOKEN) as server:
        reader, writer = await connect(server)
        writer.write(request(ONE, "Authorization: Bearer s3cret"))
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                assert b"200 OK" not in await reader.read()
        assert server.intake.arrivals == []


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async with running(tmp_path, http={"enabled": False}) as server:
        assert await post(server) == 400
        assert server.intake.arrivals == []


async def test_tls_holds_for_http_too(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with running(tmp_path, tls=certificates.server()) as server:
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        assert await post(server, ssl=context, server_hostname="localhost") == 200
        assert [row.body for row in server.intake.rows()] == ["one"]


async def test_http_without_tls_is_told_in_http_where_the_port_has_tls(tmp_path: Path) -> None:
    async with running(tmp_path, tls=Certificates(tmp_path).server()) as server:
        reader, writer = await connect(server)
        writer.write(request())
        assert await answer_to(reader) == (400, b"This port speaks TLS.\n")
        writer.close()
        assert server.metric("forward_refused_handshakes_total", reason="tls_expected") == 1
        assert server.intake.arrivals == []


async def test_places_are_shared_and_given_back(tmp_path: Path) -> None:
    async with running(tmp_path, max_connections=1) as server:
        for _ in range(3):
            assert await post(server) == 200
            hub = server.receiver._hub
            async with asyncio.timeout(PATIENCE_S):
                while hub is None or hub.places.taken:  # noqa: ASYNC110 — nobody tells
                    await asyncio.sleep(0.005)


async def test_a_stop_answers_what_is_whole_and_refuses_what_is_not(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        reader, writer = await connect(server)
        writer.write(request()[:-5])
        await writer.drain()
        http = server.receiver._http
        assert http is not None
        async with asyncio.timeout(PATIENCE_S):
            while not http._service.connections:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.005)
        await server.receiver.stop(asyncio.get_running_loop().time() + 2)
        assert (await answer_to(reader))[0] == 503


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_what_curl_posts_is_read(tmp_path: Path) -> None:
    async with running(tmp_path, **KEY, **TOKEN) as server:
        host, port = server.receiver.addresses[0]
        arguments = ["-sS", "--data-binary", ONE.decode(), "-H", "Authorization: Bearer s3cret", f"http://{host}:{port}/app.web"]
        curl = await asyncio.create_subprocess_exec("curl", *arguments, stdout=asyncio.subprocess.PIPE)
        said, _ = await curl.communicate()
        assert json.loads(said) == {"refused": 0}
        assert [row.body for row in server.intake.rows()] == ["one"]
