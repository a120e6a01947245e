"""What a Forward port makes of a peer's first bytes: Forward, HTTP that is handed over, or something that is refused in its own protocol.

One byte tells: a message of Forward begins with an array, a nil or (JSON) a bracket, a request of HTTP with a capital letter.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Callable
from typing import TYPE_CHECKING

from emp_pipe.receivers.forward_hub import FOR_GOOD
from emp_pipe.receivers.forward_refusals import answer_to

if TYPE_CHECKING:
    from emp_pipe.receivers.forward_connection import ForwardConnection
    from emp_pipe.receivers.forward_hub import Hub

_CAPITALS = frozenset(string.ascii_uppercase.encode())


def is_something_else(connection: ForwardConnection, hub: Hub, transport: asyncio.Transport, first_bytes: bytes, takes_http: bool) -> bool:
    """Return False where it may be Forward. Else the peer has another protocol now, or its refusal."""
    if takes_http and hub.http is not None and first_bytes[0] in _CAPITALS:
        hub.connections.discard(connection)
        connection.closed.set()
        connection.read_nothing_more()
        if connection.paused:  # for want of room; HTTP is told of that
            transport.resume_reading()
        connection.paused |= FOR_GOOD
        hub.http.take_over(transport, connection.address, first_bytes)
        return True
    answer = answer_to(first_bytes)
    if answer is None:
        return False
    reply, refusal = answer
    transport.write(reply)
    hub.refused(refusal, connection.address)
    connection.read_nothing_more()
    connection.close()
    return True


def greet(hub: Hub, takes_http: bool, say_helo: Callable[[], None]) -> None:
    """Say the HELO; a moment later where a request may come instead, to which it would be garbage."""
    if takes_http and hub.http is not None:
        hub.http.wait_before(say_helo)
    else:
        say_helo()
