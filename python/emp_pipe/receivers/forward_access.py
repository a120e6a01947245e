"""Who may send to a Forward receiver: what a peer must know, by the address that it comes from.

Fluentd's rules: a `clients` entry (an address, a network or a host name) may have a shared key of its own and a list of the users allowed
from there; who matches none is an anonymous source, let in by default. The most specific entry wins. Without any key there is no handshake.
Not here: the handshake itself (`emp_pipe/forward_handshake.py`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from emp_pipe.component import ComponentConfig
from emp_pipe.forward_handshake import MAX_NAME_BYTES, Credentials
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.secret import Secret

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def keys_given(value: Any) -> Any:
    """Let one key stand for a list of one."""
    return [value] if value is not None and not isinstance(value, list | tuple) else (value or ())


class ForwardClientConfig(ComponentConfig):
    """One source of data and what it must know."""

    network: str = Field(
        min_length=1, description="An address, a network such as 10.0.0.0/8, or a host name (looked up again every minute)."
    )
    shared_key: tuple[Secret, ...] = Field((), max_length=2, description="The key of this source; without one the receiver's holds.")
    users: tuple[str, ...] = Field((), description="The users allowed from here; none named: all of the receiver's users.")

    _one_or_two_keys = field_validator("shared_key", mode="before")(keys_given)


class AccessConfig(ComponentConfig):
    """The part of a Forward receiver's settings that says who may send."""

    shared_key: tuple[Secret, ...] = Field(
        (), max_length=2, description="The key that clients must know. Two are valid at once while one replaces the other."
    )
    users: Mapping[str, Secret] = Field(default_factory=dict, description="User name to password; with any, every client must name one.")
    clients: tuple[ForwardClientConfig, ...] = Field((), description="Sources with rules of their own.")
    allow_anonymous_source: bool = Field(True, description="Let in sources that no entry of `clients` matches.")

    _one_or_two_keys = field_validator("shared_key", mode="before")(keys_given)

    @field_validator("users")
    @classmethod
    def _names_fit_the_handshake(cls, users: Mapping[str, Secret]) -> Mapping[str, Secret]:
        for name in users:
            if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
                raise ValueError(f"a user name has 1 to {MAX_NAME_BYTES} bytes")
        return users

    @property
    def asks_for_a_key(self) -> bool:
        """Every peer that gets in has to know a key."""
        if self.shared_key:
            return True
        return bool(self.clients) and not self.allow_anonymous_source and all(client.shared_key for client in self.clients)


@dataclass(frozen=True, slots=True)
class _Rule:
    network: _Network
    credentials: Credentials | None


class Access:
    """The rules, ready to be asked. `prepare()` reads secrets and looks host names up; `credentials_of` is a few comparisons."""

    def __init__(self, config: AccessConfig, place: str) -> None:
        self._config = config
        self._place = place
        self._log = RateLimitedLogger(get_logger(place), interval_s=300.0)
        self._rules: list[_Rule] = []
        self._default: Credentials | None = None
        self.looks_names_up = any(_as_network(client.network) is None for client in config.clients)

    async def prepare(self) -> None:
        """Read the secrets, look the names up; again at each reload. Raises ConfigError; then the rules are unchanged."""
        place, config = self._place, self._config
        passwords = {name.encode(): secret.reveal(f"{place}: users.{name}").encode() for name, secret in config.users.items()}
        keys = tuple(secret.reveal(f"{place}: shared_key").encode() for secret in config.shared_key)
        rules: list[_Rule] = []
        for client in config.clients:
            own = tuple(secret.reveal(f"{place}: clients: {client.network}: shared_key").encode() for secret in client.shared_key)
            users = {name.encode() for name in client.users}
            allowed = {name: password for name, password in passwords.items() if not users or name in users}
            credentials = _credentials(own or keys, allowed if passwords else None)
            rules += [_Rule(network, credentials) for network in await self._networks(client.network)]
        rules.sort(key=lambda rule: rule.network.prefixlen, reverse=True)
        self._default = _credentials(keys, passwords or None)
        self._rules = rules

    def credentials_of(self, address: str) -> tuple[bool, Credentials | None]:
        """Return whether a source may come at all, and what it must know (None: nothing, there is no handshake).

        `address` is "" for a Unix socket, where the file's permissions decide who connects."""
        if address and self._rules:
            source = _as_address(address)
            for rule in self._rules:
                if source is not None and source.version == rule.network.version and source in rule.network:
                    return True, rule.credentials
        if address and self._config.clients and not self._config.allow_anonymous_source:
            return False, self._default
        return True, self._default

    async def _networks(self, text: str) -> list[_Network]:
        network = _as_network(text)
        if network is not None:
            return [network]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(text, None, type=socket.SOCK_STREAM)
        except OSError as error:
            self._log.warning(
                text, "%s: clients: the host name %s is not found (%s); nothing from there gets in by it", self._place, text, error
            )
            return []
        return [ipaddress.ip_network(address) for address in sorted({str(entry[4][0]).partition("%")[0] for entry in found})]


def _credentials(keys: tuple[bytes, ...], users: Mapping[bytes, bytes] | None) -> Credentials | None:
    return Credentials(keys, users) if keys else None


def _as_network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
