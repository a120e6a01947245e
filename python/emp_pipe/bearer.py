"""Bearer tokens of a listener: who may send, found in a time that does not depend on what was guessed.

Two tokens may be valid at once, so that one can replace the other; each client may have one of its own, whose name is then said in dead
letters. Not here: how a token travels (a header, gRPC metadata), and what a refused client is told.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from emp_pipe.component import ComponentConfig
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.secret import Secret


class BearerConfig(ComponentConfig):
    """The part of a listener's settings that says which tokens it takes."""

    token: tuple[Secret, ...] = Field(
        (),
        max_length=2,
        description="Clients must send `Authorization: Bearer <token>`. Two are valid at once while one replaces the other.",
    )
    client_tokens: Mapping[str, Secret] = Field(
        default_factory=dict, description="A client's name to a token of its own; the name is kept with what it sent that was invalid."
    )

    @field_validator("token", mode="before")
    @classmethod
    def _one_token_is_a_list(cls, value: Any) -> Any:
        return [value] if value is not None and not isinstance(value, list | tuple) else (value or ())

    @property
    def asks_for_a_token(self) -> bool:
        return bool(self.token or self.client_tokens)


class BearerTokens:
    """The tokens, ready to be asked. `prepare()` reads them, at start and at each reload."""

    def __init__(self, config: BearerConfig, place: str) -> None:
        self._config = config
        self._place = place
        self._tokens: list[tuple[bytes, str]] = []
        self.is_open = not config.asks_for_a_token
        """Everybody gets in."""

    def prepare(self) -> None:
        """Read the secrets. Raises ConfigError; then the tokens are unchanged."""
        place, config = self._place, self._config
        tokens = [(_revealed(secret, f"{place}: token"), "") for secret in config.token]
        tokens += [(_revealed(secret, f"{place}: client_tokens.{name}"), name) for name, secret in config.client_tokens.items()]
        self._tokens = tokens

    def client_of(self, authorization: str) -> str | None:
        """Return the client's name ("" where its token has none); None where it does not get in."""
        if self.is_open:
            return ""
        scheme, _, given = authorization.partition(" ")
        offered = given.strip().encode("utf-8", "surrogateescape")
        found: str | None = None
        for token, name in self._tokens:  # all of them, every time
            if hmac.compare_digest(offered, token) and found is None:
                found = name
        return found if scheme.lower() == "bearer" else None


def _revealed(secret: Secret, place: str) -> bytes:
    token = secret.reveal(place).strip()
    if not token:  # it would let in whoever sends the word Bearer alone
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail="the token is nothing but white space")
    return token.encode()
