"""What is a secret: the rules that the `redact` processor and the dead letters share.

A key names a secret by whole words (`db.password`, `apiKey`, `Set-Cookie`), a value is recognised by what it looks like. The work is the
Rust core's (`redact/`), in time linear in what is looked at. For users: `docs/redaction.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from emp_pipe.component import ComponentConfig
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.secret import Secret

if TYPE_CHECKING:
    from emp_pipe._core import Redactor

Pattern = Literal[
    "key_value", "bearer", "aws_key", "jwt", "private_key", "url_password", "sentry_key", "provider_token", "email", "card_number"
]

KEYS = (
    "password",
    "passwords",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "secrets",
    "token",
    "authorization",
    "api_key",
    "access_key",
    "private_key",
    "shared_key",
    "account_key",
    "encryption_key",
    "credential",
    "credentials",
    "cookie",
    "jwt",
    "dsn",
    "connection_string",
)

_LEAST_KEY_LENGTH = 16


class RedactRules(ComponentConfig):
    """Which values are masked, and with what."""

    builtin_keys: bool = Field(True, description=f"Use the names that are built in: {', '.join(KEYS)}.")
    keys: tuple[str, ...] = Field(
        (),
        description="Further names of secrets. Attributes are masked whose key has a name in it as whole words, however they are joined.",
    )
    kept_keys: tuple[str, ...] = Field(("token_type",), description="Whole keys that are no secrets although a name is in them.")
    patterns: tuple[Pattern, ...] = Field(
        ("key_value", "bearer", "aws_key", "jwt", "private_key", "url_password", "sentry_key", "provider_token"),
        description="What values are recognised by. `key_value`: a name of a secret with a value behind it, within a text. `email` and "
        "`card_number` are off by default.",
    )
    extra_patterns: Mapping[str, str] = Field(
        default_factory=dict,
        description="Further patterns, a name each (metrics count by it): regular expressions of Rust's `regex`. A group is the secret, "
        "else the whole match.",
    )
    mask: str = Field("[redacted]", min_length=1, max_length=100, description="What takes the place of a secret in rows.")
    replace_by: Literal["mask", "hash"] = Field(
        "mask",
        description="`hash`: in place of the mask `[hash:…]`, the first 64 bits of HMAC-SHA256 with `hash_key`, so that the same secret is "
        "known again.",
    )
    hash_key: Secret | None = Field(None, description="The key of `replace_by: hash`, 16 characters or more.")

    @field_validator("extra_patterns")
    @classmethod
    def _can_be_compiled(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        from emp_pipe._core import CoreError, Redactor

        for name, pattern in value.items():
            try:
                Redactor(keys=(), kept_keys=(), patterns=(), own_patterns={name: pattern}, mask="-")
            except CoreError as error:
                raise ValueError(" ".join(str(error).removesuffix(" at byte 0").split())) from None
        return value

    @model_validator(mode="after")
    def _a_hash_has_a_key(self) -> RedactRules:
        if self.replace_by == "hash" and self.hash_key is None:
            raise ValueError("replace_by: hash needs a hash_key: without one every short secret could be guessed")
        return self

    def compiled(self, place: str = "redact") -> Redactor:
        """Return the rules as the core uses them. Raises ConfigError naming `place` where the key of hashes cannot be had."""
        from emp_pipe._core import Redactor

        hash_key = self.hash_key.reveal(f"{place}.hash_key") if self.replace_by == "hash" and self.hash_key is not None else None
        if hash_key is not None and len(hash_key) < _LEAST_KEY_LENGTH:
            detail = f"a key of hashes has {_LEAST_KEY_LENGTH} characters or more, not {len(hash_key)}"
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=f"{place}.hash_key", detail=detail)

        return Redactor(
            keys=(*(KEYS if self.builtin_keys else ()), *self.keys),
            kept_keys=self.kept_keys,
            patterns=self.patterns,
            own_patterns=dict(self.extra_patterns),
            mask=self.mask,
            hash_key=hash_key,
        )


class DeadLettersConfig(ComponentConfig):
    """What is done with rows and bytes that are given up. How much is kept of them is a setting of the buffer."""

    redact: bool = Field(
        True,
        description="Mask secrets in what `emp-pipe dlq` prints, and in bytes that could not be read before they are kept. Rows are kept "
        "as they were, for they may go back to their destination.",
    )
    rules: RedactRules = Field(RedactRules.model_validate({}), description="What is masked.")

    def redactor(self) -> Redactor | None:
        """Return what masks secrets; None where nothing does."""
        return self.rules.compiled("dead_letters.rules") if self.redact else None
