"""Every error that emp-pipe raises on purpose: where, what, and what to do next.

An error is a kind plus data. The fields come first; the text is rendered once, from them, by `str()`. `ErrorKind` is a closed
list and each kind carries its advice and whether a retry can help: `tests/unit/test_errors.py` holds the list.
The core (`_core`) reports offsets; callers add the frame, the peer, the file on the way up with `located()`.
Read next: `component.py`, for who raises what to whom.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple


class Retry(StrEnum):
    """When trying the same thing again can succeed; the one retry loop (`delivery/loop.py`) reads it."""

    LATER = "later"
    AFTER_CONFIG_CHANGE = "after_config_change"
    """Stays buffered and is tried again at a slow pace: a key may be put right at the other side."""
    SMALLER = "smaller"
    """The same bytes will never pass; a part of them may. Split in halves down to the row."""
    NEVER = "never"


class KindFacts(NamedTuple):
    """What holds for every error of a kind."""

    summary: str
    advice: str
    retry: Retry


class ErrorKind(StrEnum):
    """What went wrong. The facts of each kind are in `FACTS`."""

    # configuration
    CONFIG_INVALID = "config_invalid"
    CONFIG_UNKNOWN_KEY = "config_unknown_key"
    CONFIG_NOT_FOUND = "config_not_found"
    ADDRESS_IN_USE = "address_in_use"
    TLS_FILES = "tls_files"
    # the log
    LOG_FULL = "log_full"
    LOG_IO = "log_io"
    LOG_NEWER = "log_newer"
    LOG_IN_USE = "log_in_use"
    LOG_CLOSED = "log_closed"
    LOG_STALE = "log_stale"
    BLOCK_INVALID = "block_invalid"
    # input
    FRAME_INVALID = "frame_invalid"
    FRAME_TOO_LARGE = "frame_too_large"
    ENTRY_INVALID = "entry_invalid"
    BODY_INVALID = "body_invalid"
    HANDSHAKE_REFUSED = "handshake_refused"
    # delivery
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    THROTTLED = "throttled"
    UNAUTHENTICATED = "unauthenticated"
    REFUSED = "refused"
    TOO_LARGE = "too_large"
    EXPIRED = "expired"
    SERVER_ERROR = "server_error"
    # plugins
    PROCESSOR_FAILED = "processor_failed"


FACTS: dict[ErrorKind, KindFacts] = {
    ErrorKind.CONFIG_INVALID: KindFacts("a setting has a value that it cannot have", "correct the value named", Retry.AFTER_CONFIG_CHANGE),
    ErrorKind.CONFIG_UNKNOWN_KEY: KindFacts(
        "the configuration has a key that does not exist", "use the nearest valid key, or remove it", Retry.AFTER_CONFIG_CHANGE
    ),
    ErrorKind.CONFIG_NOT_FOUND: KindFacts(
        "the configuration file cannot be read", "check the path and its permissions", Retry.AFTER_CONFIG_CHANGE
    ),
    ErrorKind.ADDRESS_IN_USE: KindFacts(
        "another process listens on this address", "stop it, or set another `listen` address", Retry.AFTER_CONFIG_CHANGE
    ),
    ErrorKind.TLS_FILES: KindFacts(
        "a certificate or key cannot be used", "check that the files exist, are PEM and belong together", Retry.AFTER_CONFIG_CHANGE
    ),
    ErrorKind.LOG_FULL: KindFacts(
        "the buffer is full", "a destination is behind: see `emp-pipe groups list`; senders wait and lose nothing", Retry.LATER
    ),
    ErrorKind.LOG_IO: KindFacts(
        "the disk refused a read or write", "free space or replace the disk; nothing of it was acknowledged", Retry.LATER
    ),
    ErrorKind.LOG_NEWER: KindFacts(
        "the buffer was written by a newer emp-pipe", "start the newer version, or another `data_dir`", Retry.NEVER
    ),
    ErrorKind.LOG_IN_USE: KindFacts("another emp-pipe uses this data directory", "stop it, or set another `data_dir`", Retry.NEVER),
    ErrorKind.LOG_CLOSED: KindFacts("emp-pipe is stopping", "send again after the restart", Retry.LATER),
    ErrorKind.LOG_STALE: KindFacts(
        "a delivery was taken back before its commit",
        "nothing to do: the commit had no effect and the block is read again",
        Retry.NEVER,
    ),
    ErrorKind.BLOCK_INVALID: KindFacts("a block cannot be read", "it was set aside as a dead letter: `emp-pipe dlq list`", Retry.NEVER),
    ErrorKind.FRAME_INVALID: KindFacts("the bytes are not Fluent Forward", "check what the sender speaks on this port", Retry.NEVER),
    ErrorKind.FRAME_TOO_LARGE: KindFacts("a frame exceeds the limit", "raise `max_frame_bytes`, or send smaller chunks", Retry.SMALLER),
    ErrorKind.ENTRY_INVALID: KindFacts("an entry cannot be read; the others were kept", "see the dead letter for its bytes", Retry.NEVER),
    ErrorKind.BODY_INVALID: KindFacts("a request body cannot be read", "check the sender's encoding and compression", Retry.NEVER),
    ErrorKind.HANDSHAKE_REFUSED: KindFacts(
        "the peer failed the handshake", "set the same `shared_key` (and user) on both sides", Retry.AFTER_CONFIG_CHANGE
    ),
    ErrorKind.UNREACHABLE: KindFacts("no connection", "check that the destination is up and the address is right", Retry.LATER),
    ErrorKind.TIMED_OUT: KindFacts("no answer in time", "the destination is slow or the network is; it is tried again", Retry.LATER),
    ErrorKind.THROTTLED: KindFacts(
        "the destination asks to slow down", "nothing to do: it is tried again when the destination allows", Retry.LATER
    ),
    ErrorKind.UNAUTHENTICATED: KindFacts("the key was refused", "set the right key or token for this exporter", Retry.AFTER_CONFIG_CHANGE),
    ErrorKind.REFUSED: KindFacts(
        "the destination refuses this data for good", "it becomes a dead letter: `emp-pipe dlq list`", Retry.NEVER
    ),
    ErrorKind.TOO_LARGE: KindFacts("the request is too large for the destination", "it is split and sent again", Retry.SMALLER),
    ErrorKind.EXPIRED: KindFacts("the records are older than the destination accepts", "they become dead letters", Retry.NEVER),
    ErrorKind.SERVER_ERROR: KindFacts("the destination failed", "nothing to do: it is tried again", Retry.LATER),
    ErrorKind.PROCESSOR_FAILED: KindFacts(
        "a processor raised an error; the batch passed unchanged", "mend the plugin named, or set `on_error: stop`", Retry.NEVER
    ),
}


class EmpPipeError(Exception):
    """An error with a kind, a place and fields; `str(error)` says where, what and what to do next.

    `place` is what the reader looks for first (component id, file:line, peer); `detail` is what was seen there;
    `advice` replaces the kind's own where the raiser knows better. `retry_after_s` is what the other side asked for.
    """

    def __init__(
        self,
        kind: ErrorKind,
        *,
        place: str = "",
        detail: str = "",
        advice: str = "",
        retry: Retry | None = None,
        retry_after_s: float | None = None,
        **fields: Any,
    ) -> None:
        self.kind = kind
        self.place = place
        self.detail = detail
        self.advice = advice or FACTS[kind].advice
        self.retry = retry if retry is not None else FACTS[kind].retry
        self.retry_after_s = retry_after_s
        self.fields = fields
        super().__init__(kind)

    def located(self, place: str) -> EmpPipeError:
        """Return this error with an outer place put before its own: `forward: peer 10.0.0.7: …`."""
        self.place = f"{place}: {self.place}" if self.place else place
        return self

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        what = self.detail or FACTS[self.kind].summary
        return f"{where}{what}; {self.advice}."


class ConfigError(EmpPipeError):
    """The configuration cannot be used; raised before any socket or file is opened."""


class LogError(EmpPipeError):
    """The durable log could not do what was asked; nothing of the operation took effect."""


class DeliveryError(EmpPipeError):
    """An exporter could not deliver a parcel; `retry` tells the loop what to do with it."""


class InputError(EmpPipeError):
    """Bytes from outside cannot be used; what was good in them has been kept."""
