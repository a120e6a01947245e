"""One sender of syslog by TCP or TLS: bytes to the decoder, and no reading where the log has no room.

Not here: listening (`syslog.py`), what connections share (`syslog_hub.py`), how messages are told apart (the core's `syslog/frames.rs`).
"""

from __future__ import annotations

import asyncio
from typing import cast

from emp_pipe.accepting import AcceptedProtocol
from emp_pipe.last_reads import bytes_in_socket
from emp_pipe.receivers.syslog_hub import SyslogHub

_scratch = memoryview(bytearray(131_072))
"""Every connection's reads land here: the event loop hands each over before the next."""


class SyslogConnection(AcceptedProtocol):
    """The protocol object of one accepted connection. `since_s` is when it was last heard of."""

    def __init__(self, hub: SyslogHub, address: str) -> None:
        self.address = address
        self.since_s = hub.now_s
        self.closed = asyncio.Event()
        self._hub = hub
        self._stream = hub.decoder.stream(address)
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._is_paused = False
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_made = True
        self._hub.connections.add(self)
        self._pause_where_needed()
        if self._is_paused:  # uvloop, and asyncio before Python 3.11.4, begin to read after this call, whatever was said in it
            asyncio.get_running_loop().call_soon(self._stay_paused)

    def get_buffer(self, sizehint: int) -> memoryview:
        # Paused at its start it may be read a few times still (`connection_made`): of little.
        return _scratch[:64] if self._is_paused else _scratch

    def buffer_updated(self, nbytes: int) -> None:
        hub = self._hub
        self.since_s = hub.now_s
        now, offset_s = hub.when()
        hub.took(hub.decoder.feed(self._stream, _scratch[:nbytes], now, offset_s), nbytes, self.address)
        self._pause_where_needed()

    def eof_received(self) -> bool:
        self.flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed.is_set():
            return
        if self.is_made:
            self.flush()
        self._is_over = True
        self.closed.set()
        self._hub.closed(self)

    # --- what the receiver asks ---------------------------------------------------------------------

    @property
    def unread_bytes(self) -> int:
        """What has come and is still to be read."""
        return 0 if self._is_over or self._transport.is_closing() else bytes_in_socket(self._transport)

    @property
    def pending_bytes(self) -> int:
        return self._stream.pending_bytes

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    def flush(self) -> None:
        """What has come of a message is one: nothing follows it, or nothing has for long."""
        hub = self._hub
        now, offset_s = hub.when()
        hub.took(hub.decoder.flush(self._stream, now, offset_s), 0, self.address)

    def close(self) -> None:
        if not self.closed.is_set() and self._transport is not None:
            self.flush()
            self._transport.abort()

    # --- backpressure -------------------------------------------------------------------------------

    def _pause_where_needed(self) -> None:
        if not self._is_paused and not self._hub.has_room and not self._hub.stopping:
            self._is_paused = True
            if not self._transport.is_closing():
                self._transport.pause_reading()
            self._hub.wait_for_room(self)

    def _stay_paused(self) -> None:
        if self._is_paused and not self._transport.is_closing():
            self._transport.resume_reading()  # an older asyncio reads although it takes itself for paused
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.since_s = self._hub.now_s
            if not self._transport.is_closing():
                self._transport.resume_reading()
