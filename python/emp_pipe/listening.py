"""TCP listeners of a receiver: their settings, what a `listen` setting means, the sockets, and the errors that name the address.

An entry of `listen` is `host:port` or just the port. A port alone means all interfaces where every peer has to show a key, a token or a
certificate, and loopback where not. An address that other machines reach (`*:port` is all of them), with nothing to show there, is refused
unless `allow_unauthenticated` says so in so many words: data of strangers is not taken by accident.
Not here: accepting, Unix and UDP sockets (`receivers/forward_listen.py`).
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from emp_pipe.errors import ConfigError, ErrorKind

BACKLOG = 1024
_ENTRY = re.compile(r"^(?:(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^\[\]:\s]+):)?(?P<port>\d{1,5})$")
_ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104 — only where a key or certificate is asked for, or where the setting says `*`
_LOOPBACK = ("127.0.0.1", "::1")


def parse_listen(entry: str) -> tuple[str, int]:
    """Return host ("" for a port alone, "*" for all interfaces) and port. Raises ValueError."""
    match = _ENTRY.match(entry)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"`{entry}` is no address: write host:port, such as 127.0.0.1:4318, *:4318 for all interfaces, or a port alone")
    return (match["host"] or "").strip("[]"), int(match["port"])


def _one_address_is_a_list(given: Any) -> Any:
    return [str(given)] if isinstance(given, str | int) else given


def _addresses_are_addresses(listen: tuple[str, ...]) -> tuple[str, ...]:
    for entry in listen:
        parse_listen(entry)
    return listen


Listen = Annotated[tuple[str, ...], BeforeValidator(_one_address_is_a_list), AfterValidator(_addresses_are_addresses)]
"""The type of a `listen` setting: one entry or several."""


def listen_setting(port: str, credentials: str) -> Any:
    """Return the default and the description of a `listen` setting. `credentials`: what guards the receiver, for the reader."""
    return Field(
        (port,),
        description=f"host:port, *:port for all interfaces, or a port alone: all interfaces where clients have to show {credentials}, "
        "else loopback. One or several.",
    )


def max_connections_setting() -> Any:
    return Field(4096, description="The most connections open at once.")


def max_connections_per_address_setting() -> Any:
    return Field(1024, description="The most connections open at once from one address.")


def allow_unauthenticated_setting() -> Any:
    return Field(
        False,
        description="INSECURE: listen where other machines reach it although clients have to show nothing. Anybody can send.",
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host of a `listen` entry. Names are not looked up: none but localhost is."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_guard(listen: Sequence[str], *, guarded: bool, allowed: bool, credentials: str) -> None:
    """Raise ValueError where strangers could send: other machines reach an address, and nobody has to show anything there."""
    if guarded or allowed:
        return
    for entry in listen:
        host, _ = parse_listen(entry)
        if host and not is_loopback(host):
            raise ValueError(
                f"`listen`: other machines reach `{entry}`, and whoever does could send; set {credentials}, listen on 127.0.0.1, or say "
                "`allow_unauthenticated: true`"
            )


def max_refusals_setting() -> Any:
    return Field(
        10.0, description="The most failed handshakes of one address a second; over it, for seconds, its connections are closed unread."
    )


def addresses(entry: str, *, guarded: bool) -> list[tuple[str, int]]:
    """Return what an entry means. `guarded`: every peer has to show a key, a token or a certificate."""
    host, port = parse_listen(entry)
    if host == "*" or (not host and guarded):
        return [(name, port) for name in _ALL_INTERFACES]
    if not host:
        return [(name, port) for name in _LOOPBACK]
    return [(host, port)]


def open_listeners(entry: str, *, guarded: bool, place: str) -> list[socket.socket]:
    """Return listening sockets, not blocking. Raises ConfigError (ADDRESS_IN_USE) that names the address."""
    opened: list[socket.socket] = []
    wanted = addresses(entry, guarded=guarded)
    try:
        for host, port in wanted:
            if port == 0 and opened:  # any free port, but the same one on both families
                port = opened[0].getsockname()[1]
            try:
                opened += _open_tcp(host, port)
            except OSError as error:
                no_ipv6 = len(wanted) > 1 and opened and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EINVAL)
                if no_ipv6:
                    continue
                raise bind_error(error, f"{host}:{port}", place) from None
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def bind_error(error: OSError, address: str, place: str) -> ConfigError:
    """Return what a failed bind means for the reader of the configuration."""
    if error.errno == errno.EADDRINUSE:
        return ConfigError(ErrorKind.ADDRESS_IN_USE, place=place, detail=f"another process listens on {address}")
    why = error.strerror or str(error)
    return ConfigError(
        ErrorKind.CONFIG_INVALID, place=place, detail=f"cannot listen on {address} ({why})", advice="set another `listen` address"
    )


def _open_tcp(host: str, port: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            opened.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind(address)
            sock.listen(BACKLOG)
    except BaseException:
        close_all(opened)
        raise
    return opened
