"""Which connection a request of the HTTP client goes on, how long each part may take, and where it goes; on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from types import SimpleNamespace
from typing import Any

import pytest

from emp_pipe.delivery import dial as dialing
from emp_pipe.delivery.http_client import HttpClient, Target
from emp_pipe.delivery.http_link import DEADLINES
from emp_pipe.errors import DeliveryError, ErrorKind
from tests.support.context import make_context
from tests.support.http_client import LARGE, OK, SMALL, Client, pumped, talking, until
from tests.support.manual_clock import ManualClock
from tests.support.scripted_http import Behaviour, Conversation, ScriptedServer, closes_after, says

# --- kept connections ---------------------------------------------------------------------------------


async def closes_instead(conversation: Conversation) -> None:
    conversation.writer.transport.abort()


async def test_a_kept_connection_that_ends_as_the_request_goes_out_sends_it_again_once_and_counts_it() -> None:
    async with talking() as (server, client):
        await client.good(server)
        server.script(closes_instead)
        assert await client.good(server) == 2
        assert (len(server.requests), client.resent) == (3, 1)


async def test_a_request_goes_again_once_and_not_a_second_time() -> None:
    async with talking() as (server, client):
        await client.good(server)
        server.script(closes_instead, closes_instead)
        assert (await client.error()).kind is ErrorKind.UNREACHABLE
        assert (len(server.requests), client.resent) == (3, 1)
        await client.good(server)


async def test_the_second_time_it_goes_on_a_new_connection_although_there_are_kept_ones() -> None:
    async with talking() as (server, client):
        await asyncio.gather(client.post(), client.post(), client.post())
        server.script(closes_instead)
        assert await client.good(server) == 4


async def test_a_new_connection_that_ends_without_an_answer_sends_nothing_again() -> None:
    async with talking() as (server, client):
        server.script(closes_instead)
        assert (await client.error()).kind is ErrorKind.UNREACHABLE
        assert (len(server.requests), client.resent) == (1, 0)


async def test_a_kept_connection_that_ends_after_the_first_byte_of_an_answer_sends_nothing_again() -> None:
    async with talking() as (server, client):
        await client.good(server)
        server.script(closes_after(b"H"))
        assert (await client.error()).kind is ErrorKind.UNREACHABLE
        assert (len(server.requests), client.resent) == (2, 0)


async def test_bytes_that_nobody_asked_for_end_a_kept_connection_and_answer_nothing() -> None:
    async with talking(clock=ManualClock()) as (server, client):
        server.script(says(OK + b"Content-Length: 0\r\n\r\n"))
        await client.post()
        (writer,) = server._writers
        writer.write(OK + b"Content-Length: 5\r\n\r\nwrong")
        await until(lambda: not client.http._links)
        assert await client.good(server) == 2
        assert client.resent == 0


async def test_a_kept_connection_that_the_server_closes_is_not_used_again() -> None:
    async with talking(clock=ManualClock()) as (server, client):
        await client.good(server)
        for writer in server._writers:
            writer.close()
        await until(lambda: not client.http._links)
        assert (await client.good(server), client.resent) == (2, 0)


async def test_requests_at_the_same_time_have_connections_of_their_own_and_no_more_are_kept_than_may_be_used() -> None:
    async with talking(max_connections=3) as (server, client):
        replies = await asyncio.gather(*(client.post() for _ in range(8)))
        assert {reply.body for reply in replies} == {f"answer {number}".encode() for number in range(1, 9)}
        assert server.connections == 8
        await until(lambda: server.open_connections == 3)
        for _ in range(5):
            await asyncio.gather(*(client.post() for _ in range(3)))
        assert server.connections == 8


async def test_a_connection_that_nobody_needs_is_closed_after_a_while() -> None:
    clock = ManualClock()
    async with talking(clock=clock) as (server, client):
        await client.good(server)
        await pumped(clock, lambda: server.open_connections == 0)
        assert clock.monotonic_s() - 1000.0 >= 15.0
        assert (await client.good(server), client.resent) == (2, 0)


async def test_a_request_that_is_cancelled_takes_its_connection_with_it() -> None:
    arrived = asyncio.Event()

    async def keeps_silent(conversation: Conversation) -> None:
        arrived.set()
        await conversation.closed()

    async with talking() as (server, client):
        server.script(keeps_silent)
        task = asyncio.create_task(client.post())
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.open_connections == 0 and not client.http._links)
        assert await client.good(server) == 2


# --- time ---------------------------------------------------------------------------------------------


async def keeps_silent(conversation: Conversation) -> None:
    await conversation.body()
    await conversation.closed()


async def takes_nothing(conversation: Conversation) -> None:
    conversation.writer.transport.pause_reading()
    await asyncio.Event().wait()


def never_ends(data: bytes) -> Behaviour:
    async def behave(conversation: Conversation) -> None:
        await conversation.body()
        with contextlib.suppress(ConnectionError):
            while True:
                for at in range(len(data)):
                    await conversation.say(data[at : at + 1])
                    await asyncio.sleep(0.002)

    return behave


LATE: dict[str, tuple[Behaviour, memoryview, str, float]] = {
    "takes nothing of the request": (takes_nothing, LARGE, "took nothing of the request", DEADLINES.write_s),
    "does not answer": (keeps_silent, SMALL, "no answer within", DEADLINES.first_byte_s),
    "does not answer after interim answers": (says(b"HTTP/1.1 100 Continue\r\n\r\n"), SMALL, "no answer within", DEADLINES.first_byte_s),
    "stops in its headers": (says(OK), SMALL, "did not come whole", DEADLINES.answer_s),
    "stops in its body": (says(OK + b"Content-Length: 9\r\n\r\nhalf"), SMALL, "did not come whole", DEADLINES.answer_s),
    "sends its headers byte by byte": (never_ends(OK + b"a:b\r\n" * 999), SMALL, "did not come whole", DEADLINES.answer_s),
}


@pytest.mark.parametrize("case", LATE)
async def test_who_takes_too_long_is_given_up_in_the_part_that_took_too_long(case: str) -> None:
    behaviour, body, words, after_s = LATE[case]
    clock = ManualClock()
    async with talking(clock=clock) as (server, client):
        await client.good(server)
        server.script(behaviour)
        began_s = clock.monotonic_s()
        task = asyncio.create_task(client.error(body))
        await pumped(clock, task.done)
        error = await task
        assert (error.kind, words in str(error)) == (ErrorKind.TIMED_OUT, True), str(error)
        assert clock.monotonic_s() - began_s >= after_s
        await client.good(server)


async def test_a_port_that_takes_connections_and_shakes_no_hands_is_given_up(tmp_path: Any) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        tls: Any = SimpleNamespace(current=ssl.create_default_context)
        http = HttpClient("test", make_context(), max_connections=1, tls=tls, deadlines=DEADLINES._replace(connect_s=0.1))
        with pytest.raises(DeliveryError, match=r"no connection to 127\.0\.0\.1") as caught:
            await http.post(Target.of(address, {}, "test"), SMALL)
        assert caught.value.kind is ErrorKind.TIMED_OUT
        await http.close()


# --- addresses ----------------------------------------------------------------------------------------


async def test_of_several_addresses_the_first_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with talking() as (server, client):
        with socket.socket() as nobody, socket.socket() as full, contextlib.ExitStack() as waiting:
            nobody.bind(("127.0.0.1", 0))
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(4):  # fill its queue: who comes now gets no answer at all
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            ports = [nobody.getsockname()[1], full.getsockname()[1], server.port]

            async def resolve(host: str, port: int) -> Any:
                return [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]

            monkeypatch.setattr(dialing, "resolve", resolve)
            await client.good(server)


async def test_where_no_address_answers_the_error_says_why_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> Any:
        return [(socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_INET, ("127.0.0.1", 9))]

    monkeypatch.setattr(dialing, "resolve", resolve)
    async with talking() as (_, client):
        assert "Connection refused" in str(await client.error())


async def test_the_families_of_a_name_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    v6, v4 = socket.AF_INET6, socket.AF_INET
    found = [(v6, 1, 6, "", ("::1",)), (v6, 1, 6, "", ("::2",)), (v6, 1, 6, "", ("::3",)), (v4, 1, 6, "", ("127.0.0.1",))]
    monkeypatch.setattr(dialing.socket, "getaddrinfo", lambda *_, **__: found)
    assert [address for _, (address,) in await dialing.resolve("name", 80)] == ["::1", "127.0.0.1", "::2", "::3"]


async def test_a_name_that_nobody_knows_is_unreachable() -> None:
    http = HttpClient("test", make_context(), max_connections=1)
    with pytest.raises(DeliveryError, match=r"cannot connect to no-such-host\.invalid:80") as caught:
        await http.post(Target.of("http://no-such-host.invalid/", {}, "test"), SMALL)
    assert caught.value.kind is ErrorKind.UNREACHABLE
    await http.close()


async def test_ipv6_is_reached_and_named_in_brackets() -> None:
    async with ScriptedServer(host="::1") as server:
        client = Client(server)
        await client.good(server)
        assert f"\r\nHost: [::1]:{server.port}\r\n".encode() in server.requests[0].head
        await client.http.close()


# --- large requests -----------------------------------------------------------------------------------


async def test_a_request_of_any_length_arrives_byte_for_byte_with_its_head_in_front() -> None:
    async with talking() as (server, client):
        for size in (0, 1, 65_536, 300_001, len(LARGE)):
            assert (await client.post(LARGE[:size])).status == 200
            assert server.requests[-1].body == LARGE[:size]
            assert server.requests[-1].length == size
        assert server.connections == 1
