"""Sockets of a Forward receiver beside its TCP listeners (`emp_pipe/listening.py`): the UDP one for heartbeats, and the Unix socket."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from emp_pipe.listening import BACKLOG, bind_error


def open_datagram(host: str, port: int, place: str) -> socket.socket:
    """Return the UDP socket for heartbeats on the address of a TCP listener."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise bind_error(error, f"{host}:{port} (UDP)", place) from None
    return sock


def open_unix(path: Path, mode: int, place: str) -> socket.socket:
    """Return a listening Unix socket. A file left by a process that is gone is replaced; one that somebody serves is an error."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_abandoned(path):
            path.unlink(missing_ok=True)
        sock.setblocking(False)
        sock.bind(os.fspath(path))
        path.chmod(mode)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise bind_error(error, os.fspath(path), place) from None
    return sock


def _is_abandoned(path: Path) -> bool:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False
