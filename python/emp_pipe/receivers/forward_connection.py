"""One peer of a Forward receiver: handshake, reads that land in the core's memory, acks after the log's commit, backpressure.

    socket ─▶ get_buffer / buffer_updated ─▶ ForwardDecoder ─▶ Arrival ─▶ intake.submit ┐
    socket ◀── one write per ack ◀── in the order of the reads ◀── durable ◀────────────┘

A fixed few calls per read, none per record. Transport-agnostic: TCP, TLS and Unix sockets are the same to it.
Not here: listening and accepting (`forward.py`), what the connections share (`forward_hub.py`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from emp_pipe.accepting import AcceptedProtocol
from emp_pipe.component import Arrival
from emp_pipe.forward_handshake import Credentials, Refusal, ServerHandshake, refused_pong
from emp_pipe.last_reads import bytes_in_socket
from emp_pipe.receivers.forward_acks import AckQueue, PendingRead
from emp_pipe.receivers.forward_arrivals import Source, arrivals_of, unchunked_records
from emp_pipe.receivers.forward_detect import greet, is_something_else
from emp_pipe.receivers.forward_hub import FOR_GOOD, FOR_LOG, FOR_MORE, FOR_OTHERS, FOR_ROOM, FOR_WRITES, Hub

if TYPE_CHECKING:
    from emp_pipe._core import ForwardDecoder, ForwardRead

_HANDSHAKE_READ_BYTES = 4_096
_TURN_BYTES = 256 << 10
"""After so much everything else has its turn: libuv reads a full socket 32 times in a row, and megabytes would wait, cold by then."""
_LONG_AGO = 1 << 62


class ForwardConnection(AcceptedProtocol):
    """The protocol object of one accepted connection. `refuse`: tell the peer so, in the handshake where there is one."""

    def __init__(self, hub: Hub, address: str, credentials: Credentials | None, refuse: Refusal | None = None) -> None:
        self.address = address
        self.peer = address
        self.waits_since_s = hub.clock.monotonic_s()
        """When the peer was last heard of, to within a sweep."""
        self.heard = False
        self.closed = asyncio.Event()
        self._hub = hub
        self._refuse = refuse
        self._takes_http = hub.http is not None and hub.http.takes(credentials is not None, refuse is not None)
        self._handshake = ServerHandshake(credentials, hub.settings.hostname, refuse) if credentials is not None else None
        self._decoder: ForwardDecoder | None = None
        self._small = memoryview(bytearray(_HANDSHAKE_READ_BYTES)) if credentials is not None else memoryview(b"")
        self._unsniffed: memoryview | None = None
        self._is_shaking = False
        self._source: Source
        self._transport: asyncio.Transport
        self.paused = 0
        self._read_bytes = hub.settings.max_read_bytes  # the decoder grows its memory with full reads up to that
        self._unsubmitted_bytes = 0
        self._turn_bytes = 0
        self._acks = AckQueue(self._write_ack)
        self._unacked_bytes = 0
        self._saw_eof = False
        self._is_lost = False
        self._least_age_ns = _LONG_AGO

    # --- the transport's calls ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_made = True
        self._hub.connections.add(self)
        self._hub.counts.connections += 1
        if self._handshake is not None:
            greet(self._hub, self._takes_http, self._say_helo)
        elif self._refuse is not None:
            self.turn_away(self._refuse)
        else:
            self._begin_stream()
            self._unsniffed = memoryview(b"")
        if self.paused:  # uvloop, and asyncio before Python 3.11.4, begin to read after this call, whatever was said in it
            asyncio.get_running_loop().call_soon(self._stay_paused)

    def get_buffer(self, sizehint: int) -> memoryview:
        decoder = self._decoder
        if decoder is None:
            return self._small
        if self._unsniffed is None and not self.paused:
            return memoryview(decoder.reserve(self._read_bytes))
        # TLS asks for memory and may then have nothing to put there: the view of that time is given up, or the memory could not move.
        sniffs, self._unsniffed = self._unsniffed is not None, None
        # Paused at its start it may be read a few times still (`connection_made`): of little.
        view = memoryview(decoder.reserve(self._read_bytes))[: 64 if self.paused else None]
        self._unsniffed = view if sniffs else None
        return view

    def buffer_updated(self, nbytes: int) -> None:
        self.heard = True
        decoder = self._decoder
        if decoder is None:
            self._read_handshake(bytes(self._small[:nbytes]))
            return
        if self._unsniffed is not None:
            view, self._unsniffed = self._unsniffed, None
            if self._speaks_something_else(view[:nbytes]):
                return
            del view
        self._took(decoder.received(nbytes, self._hub.clock.unix_nano()), nbytes)
        self._turn_bytes += nbytes
        if self._turn_bytes >= _TURN_BYTES:
            self._turn_bytes = 0
            self._pause(FOR_OTHERS)
            asyncio.get_running_loop().call_soon(self.resume, FOR_OTHERS)

    def eof_received(self) -> bool:
        """The peer sends no more. Without TLS it may still read: it is told what becomes durable, then the connection is closed."""
        self._end_of_stream()
        if self.owes_nothing:
            return False
        self.paused |= FOR_GOOD
        return self._transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self.paused |= FOR_GOOD
        self._end_of_stream()
        self.report_age(self._hub.clock.monotonic_s())
        self._acks.drop()
        if not self.paused & FOR_MORE:
            self._forget()

    def pause_writing(self) -> None:
        self._pause(FOR_WRITES)

    def resume_writing(self) -> None:
        self.resume(FOR_WRITES)

    # --- what the receiver asks ---------------------------------------------------------------------

    @property
    def in_handshake(self) -> bool:
        return self._decoder is None and not self.paused & FOR_GOOD

    @property
    def unfinished_bytes(self) -> int:
        return 0 if self._decoder is None else self._decoder.pending_bytes

    @property
    def is_waiting_for_us(self) -> bool:
        """It is not read from, or has acks to come: its silence says nothing."""
        return self.paused != 0 or not self.owes_nothing

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def owes_nothing(self) -> bool:
        return not self._acks and not self.paused & FOR_MORE

    @property
    def unread_bytes(self) -> int:
        """What has come and is still to be read, as far as one can see: 0 where nothing more will be read."""
        return 0 if self.paused & FOR_GOOD or self._decoder is None else self.paused or bytes_in_socket(self._transport)

    def give_memory_back(self) -> None:
        """Called when the peer has been silent: the decoder keeps no buffer for a read that may never come."""
        if self._decoder is not None and not self._decoder.pending_bytes:
            self._unsniffed = self._unsniffed and memoryview(b"")  # TLS had asked for memory and had nothing to put there
            self._decoder.reserve(0)

    @property
    def has_room(self) -> bool:
        return self._unacked_bytes * 2 <= self._hub.settings.max_unacked_bytes

    def report_age(self, now_s: float) -> None:
        """Tell the table of clocks the least age since the last report."""
        if self._least_age_ns != _LONG_AGO:
            self._hub.skew.seen(self.address, self._least_age_ns, now_s)
            self._least_age_ns = _LONG_AGO

    def turn_away(self, refusal: Refusal, detail: str = "") -> None:
        """Refuse the peer in its protocol, count it, say so once in a while, close."""
        self._hub.refused(refusal, self.address, self.peer if self.peer != self.address else "", detail)
        self._transport.write(refused_pong(refusal))
        self.close()

    def drain(self) -> None:
        """Read no more; acknowledge what becomes durable, then close."""
        self._pause(FOR_GOOD)
        if self.owes_nothing:
            self._transport.close()

    def close(self, *, at_once: bool = False) -> None:
        """Close; `at_once`: without sending what was written."""
        self._pause(FOR_GOOD)
        (self._transport.abort if at_once else self._transport.close)()

    # --- handshake ----------------------------------------------------------------------------------

    def _read_handshake(self, data: bytes) -> None:
        assert self._handshake is not None
        if not self._is_shaking and self._speaks_something_else(data):
            return
        self._is_shaking = True
        outcome = self._handshake.received(data)
        if outcome is None:
            return
        self._handshake = None
        self.peer = outcome.peer or self.address
        if outcome.refusal is not None:
            self.turn_away(outcome.refusal)
            return
        self._transport.write(outcome.reply)
        self._begin_stream(accept_blocks=outcome.emp_pipe_version > 0)
        if outcome.rest and self._decoder is not None:
            self._took(self._decoder.feed(outcome.rest, self._hub.clock.unix_nano()), len(outcome.rest))

    def _begin_stream(self, *, accept_blocks: bool = False) -> None:
        settings = self._hub.settings
        shown = f"{self.peer} ({self.address})" if self.peer != self.address else self.address
        self._source = Source(settings.receiver, self.peer, shown, settings.detect_duplicates)
        self._decoder = settings.make_decoder(shown, accept_blocks)
        self._small = memoryview(b"")
        self._correct_time()
        self._pause_where_needed()

    def _say_helo(self) -> None:
        if self._handshake is not None and not self.paused & FOR_GOOD and not self._transport.is_closing():
            self._takes_http = False
            self._transport.write(self._handshake.helo)

    def _speaks_something_else(self, first_bytes: memoryview | bytes) -> bool:
        """HTTP is handed over where it is taken; else it, and TLS, are refused in their own protocol."""
        return is_something_else(self, self._hub, self._transport, bytes(first_bytes), self._takes_http)

    def read_nothing_more(self) -> None:
        self._decoder = None
        self._small = memoryview(bytearray(1))

    # --- from a read to the log ---------------------------------------------------------------------

    def _took(self, read: ForwardRead, size_bytes: int) -> None:
        hub = self._hub
        counts = hub.counts
        counts.bytes += size_bytes
        self._unsubmitted_bytes += size_bytes
        frames, received, fatal = read.frames, read.received, read.fatal
        if not frames and not received and fatal is None:
            return
        batch, chunks = read.batch, read.chunks
        counts.frames += frames
        counts.records += received
        size_bytes, self._unsubmitted_bytes = self._unsubmitted_bytes, 0
        if batch is not None:
            size_bytes = max(size_bytes, batch.size_bytes)
            counts.resources_over_limit += read.resources_over_limit
            if read.min_age_ns < self._least_age_ns:
                self._least_age_ns = read.min_age_ns
                if hub.skew.correct:
                    self._correct_time()
        if read.foreign_blocks:
            hub.refused_blocks(read.foreign_blocks, self.peer)
        entry = PendingRead(self, read, size_bytes, [chunk.ack for chunk in chunks])
        self._acks.expect(entry)
        self._unacked_bytes += size_bytes
        hub.took(size_bytes)
        if fatal is None and received == (0 if batch is None else len(batch)) and self._source.detect_duplicates != "all":
            if batch is not None:
                entry.waiting = 2
                hub.submit(Arrival(self._source.receiver, batch, received=received), entry.done)
        else:
            self._submit_parts(read, entry)
        entry.waiting -= 1
        if not entry.waiting:
            self.settle(entry)
        if fatal is not None:
            counts.unreadable += 1
            self.read_nothing_more()
            self.drain()  # what was good is acknowledged when it is durable, then the connection is closed
            return
        self._pause_where_needed()
        if read.more:  # the decoder stopped at a full batch; what follows waits for room as a socket's bytes do
            self._pause(FOR_MORE)
            if self.paused & ~FOR_GOOD == FOR_MORE:
                asyncio.get_running_loop().call_soon(self._go_on)

    def _submit_parts(self, read: ForwardRead, entry: PendingRead) -> None:
        """Hand over a read with blocks, with bytes that could not be used, or whose chunks are remembered one by one."""
        hub, counts = self._hub, self._hub.counts
        for arrival in arrivals_of(read, self._source, hub.clock.unix_nano()):
            counts.blocks += len(arrival.blocks)
            if arrival.dead:
                counts.invalid += arrival.invalid
                first = arrival.dead[0]
                hub.log.warning("dead", "%s: %s at byte %d; set aside: `emp-pipe dlq list`", first.peer, first.detail, first.offset)
            entry.waiting += 1
            hub.submit(arrival, entry.done)

    def _correct_time(self) -> None:
        self.report_age(self._hub.clock.monotonic_s())
        correction_ns = self._hub.skew.correction_ns(self.address)
        if correction_ns and self._decoder is not None:
            self._decoder.set_time_correction_ns(correction_ns)

    def _go_on(self) -> None:
        """Take what the decoder still holds of the last read."""
        if self._decoder is None or self.paused & ~FOR_GOOD != FOR_MORE:
            return
        self.paused &= ~FOR_MORE
        self._took(self._decoder.received(0, self._hub.clock.unix_nano()), 0)
        if self.paused & FOR_MORE:
            return
        if self.paused & FOR_GOOD:
            self._end_of_stream()
            if self._is_lost:
                self._forget()
            elif self.owes_nothing:
                self._transport.close()
        elif not self.paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _forget(self) -> None:
        self._decoder = None
        self._hub.forget(self)
        self.closed.set()

    def _end_of_stream(self) -> None:
        if self._saw_eof or self._decoder is None or self.paused & FOR_MORE:
            return
        self._saw_eof = True
        if self._decoder.pending_bytes:
            self._hub.counts.torn += 1
        self._took(self._decoder.eof(), 0)

    # --- from the log to the ack --------------------------------------------------------------------

    def settle(self, entry: PendingRead) -> None:
        """A read is done with, durable or lost: free its budget, and acknowledge all reads up to the first one that is not."""
        self._unacked_bytes -= entry.size_bytes
        self._acks.settle()
        if self.paused & FOR_ROOM and self.has_room:
            self.resume(FOR_ROOM)
        self._hub.settled(entry.size_bytes)
        if self.paused & FOR_GOOD and self.owes_nothing:
            self._transport.close()

    def log_failed(self, entry: PendingRead, arrival: Arrival, error: BaseException) -> bool:
        """Acknowledge nothing. Return whether the arrival is held; otherwise the peer sends its chunks again, maybe to another server."""
        unchunked = unchunked_records(entry.read)
        if self._hub.hold(arrival, entry.done, error, unchunked):
            self._pause(FOR_LOG)
            self._hub.wait_for_log(self)
            return True
        entry.acks = []
        if not entry.is_lost:
            entry.is_lost = True
            self._hub.lost(unchunked, self.peer, error)
        if not self._transport.is_closing():
            self._hub.log.warning("log", "%s: closed without an ack, its chunks are sent again: %s", self.peer, error)
            self._acks.drop()
            self._transport.abort()
        return False

    def _write_ack(self, ack: bytes) -> bool:
        """Write an ack, or (b"") note that there is none left. Returns False when nobody is there any more."""
        if self._transport.is_closing():
            return False
        if ack:
            self._transport.write(ack)
            self._hub.counts.acks += 1
        elif self.paused & FOR_GOOD and self.owes_nothing:
            self._transport.close()
        return True

    # --- backpressure -------------------------------------------------------------------------------

    def _pause_where_needed(self) -> None:
        hub = self._hub
        if not hub.intake.admitting:
            self._pause(FOR_LOG)
            hub.wait_for_log(self)
        if self._unacked_bytes > hub.settings.max_unacked_bytes or hub.unacked_bytes > hub.settings.max_total_unacked_bytes:
            self._pause(FOR_ROOM)
            hub.wait_for_room(self)

    def _pause(self, reason: int) -> None:
        if not self.paused and not self._transport.is_closing():
            self._transport.pause_reading()
        self.paused |= reason

    def _stay_paused(self) -> None:
        if self.paused and not self.closed.is_set() and not self._transport.is_closing():
            self._transport.resume_reading()  # an older asyncio reads although it takes itself for paused
            self._transport.pause_reading()

    def resume(self, reason: int) -> None:
        was, self.paused = self.paused, self.paused & ~reason
        if was == self.paused:
            return
        if self.paused & ~FOR_GOOD == FOR_MORE:
            asyncio.get_running_loop().call_soon(self._go_on)
        elif not self.paused and not self._transport.is_closing():
            self._transport.resume_reading()
