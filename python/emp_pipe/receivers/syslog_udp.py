"""Syslog by UDP: datagrams are read many at a time, each is a message, and those that the kernel had no room for are counted.

UDP has no acks and no backpressure: what comes while nothing is read waits in the kernel's buffer (`udp_buffer_bytes`) and is lost when
that is full. The kernel says how many; nobody can say which.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from emp_pipe.clock import Clock
from emp_pipe.listening import addresses, bind_error
from emp_pipe.receivers.syslog_hub import SyslogHub

_MOST_AT_ONCE = 512
_MOST_BYTES_AT_ONCE = 1 << 20
_MOST_DATAGRAM_BYTES = 65_536
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("9I")
_DROPS = 8

_scratch = memoryview(bytearray(_MOST_DATAGRAM_BYTES))


def open_datagram_sockets(entry: str, *, guarded: bool, buffer_bytes: int, place: str) -> list[socket.socket]:
    """Return bound sockets, not blocking. Raises ConfigError that names the address."""
    opened: list[socket.socket] = []
    wanted = addresses(entry, guarded=guarded)
    try:
        for host, port in wanted:
            if port == 0 and opened:
                port = opened[0].getsockname()[1]
            try:
                opened.append(_open(host, port, buffer_bytes))
            except OSError as error:
                if len(wanted) > 1 and opened and ":" in host:  # no IPv6 here
                    continue
                raise bind_error(error, f"{host}:{port} (UDP)", place) from None
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return opened


def _open(host: str, port: int, buffer_bytes: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setblocking(False)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


class SyslogDatagrams:
    """Reads one UDP socket until `close`."""

    def __init__(self, hub: SyslogHub, sock: socket.socket) -> None:
        self._hub = hub
        self._sock = sock
        self._dropped = 0
        self._loop = asyncio.get_running_loop()
        self._reads = False
        self.resume()

    @property
    def buffer_bytes(self) -> int:
        """What the kernel keeps; it counts twice what was asked for, for its own use."""
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2

    def resume(self) -> None:
        if not self._reads and self._sock.fileno() >= 0:
            self._reads = True
            self._loop.add_reader(self._sock, self._readable)

    def read(self) -> bool:
        """Take what is there, at most a turn's worth; return whether there was anything."""
        packets: list[tuple[bytes, str]] = []
        size_bytes = refused = 0
        refused_address = ""
        may_send, receive = self._hub.peers.may_send, self._sock.recvfrom_into
        with contextlib.suppress(OSError):  # nothing more is there, or an ICMP answer to something sent before
            while len(packets) + refused < _MOST_AT_ONCE and size_bytes < _MOST_BYTES_AT_ONCE:
                length, address = receive(_scratch)
                peer = address[0]
                if not may_send(peer):
                    refused += 1
                    refused_address = peer
                    continue
                packets.append((bytes(_scratch[:length]), peer))
                size_bytes += length
        if refused:
            self._hub.refuse(refused, refused_address, "datagram")
        if packets:
            now, offset_s = self._hub.when()
            self._hub.took(self._hub.decoder.datagrams(packets, now, offset_s), size_bytes, packets[0][1])
        return bool(packets or refused)

    async def read_rest(self, clock: Clock, until_monotonic_s: float) -> None:
        """Read until nothing is there, or until the given time."""
        while self.read() and clock.monotonic_s() < until_monotonic_s:  # noqa: ASYNC110 -- others have their turn between two reads
            await asyncio.sleep(0)

    def count_dropped(self) -> None:
        """Count what the kernel had no room for since the last call."""
        try:
            dropped = _MEMINFO.unpack(self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[_DROPS]
        except OSError:  # not Linux, or before 4.12: nobody says
            return
        self._hub.lost((dropped - self._dropped) % (1 << 32), "kernel_buffer")
        self._dropped = dropped

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._pause()
            self.count_dropped()
            self._sock.close()

    def _pause(self) -> None:
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self._sock)

    def _readable(self) -> None:
        self.read()
        if not self._hub.has_room and not self._hub.stopping:
            self._pause()
            self._hub.wait_for_room(self)
