"""The last reads of a receiver that stops: what has reached this machine is read, because a sender without acks takes it for delivered.

Bytes are read in the order in which they came, so a connection whose socket was once found empty has given all that was there when the
stop began; one that is never empty (its sender goes on and on) is read for a while and then cut off. Next: `ForwardReceiver.stop`,
`SyslogReceiver.stop`.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Iterable
from typing import Protocol

from emp_pipe.clock import Clock

_LOOK_EVERY_S = 0.002


class Readable(Protocol):
    """A connection that is read from."""

    @property
    def unread_bytes(self) -> int: ...


async def read_what_has_come(connections: Iterable[Readable], clock: Clock, until_monotonic_s: float) -> None:
    """Return when each connection has been seen with nothing left to read, or at the given time."""
    unread = [one for one in connections if one.unread_bytes]
    while unread and clock.monotonic_s() < until_monotonic_s:
        await clock.sleep(_LOOK_EVERY_S)
        unread = [one for one in unread if one.unread_bytes]


def bytes_in_socket(transport: asyncio.BaseTransport) -> int:
    """Return how many bytes the kernel holds for a transport's reader; 0 where it is closed."""
    sock = transport.get_extra_info("socket")
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4)
    except (OSError, AttributeError, ValueError):
        return 0
    return int(struct.unpack("i", answer)[0])
