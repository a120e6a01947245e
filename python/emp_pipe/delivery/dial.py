"""A TCP connection to a name that may have several addresses: IPv6 and IPv4 in turn, the next one begun when one is slow (RFC 8305).

uvloop's `create_connection` tries one address after the other and waits for each to fail. A name is asked for once at a time, in a thread
of its own: a resolver that hangs takes no thread that others need (uvloop has two for names, asyncio shares its pool with everything) and
holds up no stop. Not here: TLS, and what is spoken (`http_client.py`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import chain, zip_longest

_NEXT_AFTER_S = 0.25
_MOST_ADDRESSES = 16

_KIND = {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}

Address = tuple[socket.AddressFamily, tuple[object, ...]]
Answer = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[object, ...]]]
_under_way: dict[tuple[str, int], Future[Answer]] = {}
_lock = threading.Lock()


async def dial(host: str, port: int) -> socket.socket:
    """Return a connected socket that does not block; its time is the caller's to limit. Raises OSError with why each address failed."""
    addresses = await resolve(host, port)
    attempts: set[asyncio.Task[socket.socket]] = set()
    errors: list[OSError] = []
    left = list(reversed(addresses))
    try:
        while left or attempts:
            if left:
                family, address = left.pop()
                attempts.add(asyncio.create_task(_connect(family, address)))
            done, attempts = await asyncio.wait(attempts, timeout=_NEXT_AFTER_S if left else None, return_when=asyncio.FIRST_COMPLETED)
            connected = [task.result() for task in done if task.exception() is None]
            for one_too_many in connected[1:]:
                one_too_many.close()
            if connected:
                return connected[0]
            for task in done:
                error = task.exception()
                if not isinstance(error, OSError):
                    raise error or AssertionError("unreachable: it connected")
                errors.append(error)
    finally:
        await _give_up(attempts)
    raise OSError("; ".join(dict.fromkeys(os.strerror(error.errno) if error.errno else str(error) for error in errors)))


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Return where a host may be reached, the families in turn. A numeric host asks nobody."""
    found: Answer
    try:
        found = socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV, **_KIND)
    except socket.gaierror:
        found = await asyncio.wrap_future(_ask_for(host, port))
    addresses: list[Address] = [(family, address) for family, _, _, _, address in found[:_MOST_ADDRESSES]]
    first = [one for one in addresses if one[0] == addresses[0][0]]
    others = [one for one in addresses if one[0] != addresses[0][0]]
    return [one for one in chain.from_iterable(zip_longest(first, others)) if one is not None]


def _ask_for(host: str, port: int) -> Future[Answer]:
    """Return what getaddrinfo will answer for a name: of the call that is under way, where there is one."""
    with _lock:
        if (asked := _under_way.get((host, port))) is not None:
            return asked
        answer: Future[Answer] = Future()
        answer.set_running_or_notify_cancel()  # from now on nobody who stops waiting can cancel it for the others

        def work() -> None:
            found: Answer | Exception
            try:
                found = socket.getaddrinfo(host, port, **_KIND)
            except Exception as error:  # also UnicodeError, for a name that is none
                found = error
            with _lock:
                del _under_way[host, port]
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        threading.Thread(target=work, name=f"name: {host}", daemon=True).start()
        _under_way[host, port] = answer
    return answer


async def _connect(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _give_up(attempts: set[asyncio.Task[socket.socket]]) -> None:
    for task in attempts:
        task.cancel()
    for ended in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(ended, socket.socket):  # it was there before it could be cancelled
            ended.close()
