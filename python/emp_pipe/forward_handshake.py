"""The handshake of Fluent Forward for both sides, without a socket: bytes in, bytes out.

    server → client  ["HELO", {"nonce": …, "auth": … or "", "keepalive": true, "emp_pipe": 1}]
    client → server  ["PING", client_hostname, salt, digest, username, password_digest, {"emp_pipe": 1}]
    server → client  ["PONG", accepted, reason, server_hostname, digest]

`emp_pipe` is how two of us recognise each other and then exchange whole blocks. Foreign peers pass over a key of the HELO that they do not
know, but not all pass over a seventh element of the PING: it is sent only to a server whose HELO had the key.

Rules of the peers that shape this (Fluent Bit's are in its `out_forward` and `in_forward`): each frame in one write and at most 1023
bytes; nonce and salt typed `str`, of letters and digits because they are C strings to some and UTF-8 text to others; a refusal's reason is
copied into 32 bytes. Not here: who may come from where (`receivers/forward_access.py`), and sockets (`receivers/forward_connection.py`,
`exporters/forward.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgpack  # type: ignore[import-untyped]

from emp_pipe.errors import ErrorKind, InputError

EMP_PIPE_VERSION = 1
MAX_SENT_BYTES = 1023
MAX_RECEIVED_BYTES = 65_536
MAX_NAME_BYTES = 255
_SALT_LETTERS = string.ascii_letters + string.digits


class Refusal(StrEnum):
    """Why a peer did not get in: the reason of the PONG (at most 31 bytes) and the label of the counter."""

    SHARED_KEY = "shared_key mismatch"
    USER = "username/password mismatch"
    ANONYMOUS_SOURCE = "source address is not allowed"
    MALFORMED = "malformed handshake"
    TIMED_OUT = "handshake timed out"
    TLS_EXPECTED = "this port speaks TLS"
    TLS_UNEXPECTED = "this port speaks no TLS"
    TLS_FAILED = "TLS handshake failed"
    NOT_FORWARD = "this port speaks Forward"
    TOO_MANY = "too many connections"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a peer must know: one of the shared keys, and (where `users` is not None) a name and its password."""

    shared_keys: tuple[bytes, ...]
    users: Mapping[bytes, bytes] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class ServerOutcome:
    """How a handshake ended at the server. `reply` is the PONG, to be written at once; `rest` came after the PING."""

    reply: bytes
    refusal: Refusal | None
    peer: str
    username: str
    emp_pipe_version: int
    rest: bytes


@dataclass(frozen=True, slots=True)
class ClientStep:
    """What a client does next: write `send`, and when `done` begin to send chunks."""

    send: bytes
    done: bool
    server: str = ""
    emp_pipe_version: int = 0
    keepalive: bool = True
    rest: bytes = b""


def random_salt() -> bytes:
    """Sixteen random letters and digits: typed `str` they survive a peer that decodes them as UTF-8 text (fluent-logger for Node does)."""
    return "".join(secrets.choice(_SALT_LETTERS) for _ in range(16)).encode()


class ServerHandshake:
    """The server's side of one connection: send `helo`, then feed what comes until there is an outcome."""

    def __init__(self, credentials: Credentials, hostname: str, refuse: Refusal | None = None) -> None:
        """`refuse`: whatever the PING says, for this reason; the peer is told in its own protocol all the same."""
        self._credentials = credentials
        self._hostname = hostname
        self._refuse = refuse
        self._nonce = random_salt()
        self._auth = random_salt() if credentials.users is not None else b""
        self._reader = _FrameReader()
        options = {b"nonce": self._nonce, b"auth": self._auth, b"keepalive": True, b"emp_pipe": EMP_PIPE_VERSION}
        self.helo = _pack([b"HELO", options])

    def received(self, data: bytes) -> ServerOutcome | None:
        """Return the outcome, or None while the PING is incomplete. Never raises for what a peer may send."""
        try:
            frame = self._reader.received(data)
            return None if frame is None else self._check(frame)
        except _MALFORMED:
            return self._refused(Refusal.MALFORMED)

    def _check(self, frame: Any) -> ServerOutcome:
        if not isinstance(frame, list) or len(frame) < 6 or frame[0] != b"PING":
            return self._refused(Refusal.MALFORMED)
        hostname, salt, digest, username, password_digest = frame[1:6]
        username, password_digest = username or b"", password_digest or b""
        if not all(isinstance(part, bytes) for part in (hostname, salt, digest, username, password_digest)):
            return self._refused(Refusal.MALFORMED)
        if len(hostname) > MAX_NAME_BYTES or len(username) > MAX_NAME_BYTES:
            return self._refused(Refusal.MALFORMED)
        peer = hostname.decode("utf-8", "replace")
        if self._refuse is not None:
            return self._refused(self._refuse, peer)
        known_key: bytes | None = None
        for key in self._credentials.shared_keys:  # all of them, always: the time says nothing about which one matched
            if hmac.compare_digest(_hexdigest(salt, hostname, self._nonce, key), digest.lower()):
                known_key = key
        if known_key is None:
            return self._refused(Refusal.SHARED_KEY, peer)
        if not self._user_is_known(username, password_digest):
            return self._refused(Refusal.USER, peer)
        version = 0
        if len(frame) > 6 and isinstance(frame[6], dict):
            claimed = frame[6].get(b"emp_pipe", 0)
            version = claimed if isinstance(claimed, int) and claimed > 0 else 0
        own = self._hostname.encode()
        if own == hostname:  # fluentd refuses a server of its own name
            own += b".receiver"
        reply = _pack([b"PONG", True, b"", own, _hexdigest(salt, own, self._nonce, known_key)])
        return ServerOutcome(reply, None, peer, username.decode("utf-8", "replace"), version, self._reader.rest())

    def _user_is_known(self, username: bytes, password_digest: bytes) -> bool:
        users = self._credentials.users
        if users is None:
            return True
        password = users.get(username)
        expected = _hexdigest(self._auth, username, password if password is not None else secrets.token_bytes(16))
        return hmac.compare_digest(expected, password_digest.lower()) and password is not None

    def _refused(self, refusal: Refusal, peer: str = "") -> ServerOutcome:
        return ServerOutcome(refused_pong(refusal), refusal, peer, "", 0, b"")


class ClientHandshake:
    """The client's side of one connection: feed what comes, do what the steps say."""

    def __init__(self, hostname: str, shared_key: str, username: str = "", password: str = "") -> None:
        self._hostname = hostname.encode()
        self._shared_key = shared_key.encode()
        self._username = username.encode()
        self._password = password.encode()
        self._salt = random_salt()
        self._nonce: bytes | None = None
        self._emp_pipe_version = 0
        self._keepalive = True
        self._reader = _FrameReader()

    def received(self, data: bytes) -> ClientStep | None:
        """Return the next step, or None while a frame is incomplete. Raises InputError (HANDSHAKE_REFUSED)."""
        try:
            frame = self._reader.received(data)
        except _MALFORMED:
            raise _refused("the server's handshake cannot be read: it speaks something else on this port") from None
        if frame is None:
            return None
        return self._answer_helo(frame) if self._nonce is None else self._check_pong(frame)

    def _answer_helo(self, frame: Any) -> ClientStep:
        if isinstance(frame, list) and len(frame) >= 3 and frame[0] == b"PONG":
            raise _refused(f"the server refuses: {_text(frame[2])}")
        if not isinstance(frame, list) or len(frame) < 2 or frame[0] != b"HELO" or not isinstance(frame[1], dict):
            raise _refused("the server opened with something else than a HELO")
        options = frame[1]
        nonce, auth = options.get(b"nonce"), options.get(b"auth") or b""
        if not isinstance(nonce, bytes) or not isinstance(auth, bytes):
            raise _refused("the server's HELO has no nonce")
        version = options.get(b"emp_pipe", 0)
        self._nonce = nonce
        self._emp_pipe_version = version if isinstance(version, int) and version > 0 else 0
        self._keepalive = options.get(b"keepalive", True) is not False
        digest = _hexdigest(self._salt, self._hostname, nonce, self._shared_key)
        password_digest = _hexdigest(auth, self._username, self._password) if auth and self._username else b""
        ping: list[Any] = [b"PING", self._hostname, self._salt, digest, self._username if auth else b"", password_digest]
        if self._emp_pipe_version:
            ping.append({b"emp_pipe": EMP_PIPE_VERSION})
        return ClientStep(send=_pack(ping), done=False)

    def _check_pong(self, frame: Any) -> ClientStep:
        assert self._nonce is not None
        if not isinstance(frame, list) or len(frame) < 5 or frame[0] != b"PONG":
            raise _refused("the server answered with something else than a PONG")
        _, accepted, reason, hostname, digest = frame[:5]
        if accepted is not True:
            raise _refused(f"the server refuses: {_text(reason)}")
        if not isinstance(hostname, bytes) or not isinstance(digest, bytes):
            raise _refused("the server's PONG has no digest")
        if not hmac.compare_digest(_hexdigest(self._salt, hostname, self._nonce, self._shared_key), digest.lower()):
            raise _refused("the server does not know the shared key that it asks for")
        return ClientStep(
            send=b"",
            done=True,
            server=_text(hostname),
            emp_pipe_version=min(self._emp_pipe_version, EMP_PIPE_VERSION),
            keepalive=self._keepalive,
            rest=self._reader.rest(),
        )


def refused_pong(refusal: Refusal) -> bytes:
    """The PONG that turns a peer away."""
    return _pack([b"PONG", False, refusal.value.encode(), b"", b""])


_MALFORMED = (ValueError, TypeError, msgpack.exceptions.UnpackException)


class _FrameReader:
    """One small msgpack value after another, out of bytes that are split anywhere; resumes, so that a drip costs no re-reading."""

    def __init__(self) -> None:
        self._fed_bytes = 0
        self._unpacker = msgpack.Unpacker(
            raw=True,
            strict_map_key=False,
            max_buffer_size=MAX_RECEIVED_BYTES,
            max_str_len=MAX_RECEIVED_BYTES,
            max_bin_len=MAX_RECEIVED_BYTES,
            max_array_len=64,
            max_map_len=64,
            max_ext_len=64,
        )

    def received(self, data: bytes) -> Any | None:
        self._fed_bytes += len(data)
        self._unpacker.feed(data)
        try:
            return self._unpacker.unpack()
        except msgpack.exceptions.OutOfData:
            return None

    def rest(self) -> bytes:
        """What was fed beyond the last value."""
        rest: bytes = self._unpacker.read_bytes(self._fed_bytes - self._unpacker.tell())
        return rest


def _hexdigest(*parts: bytes) -> bytes:
    digest = hashlib.sha512()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def _pack(frame: list[Any]) -> bytes:
    # use_bin_type=False writes bytes as `str`, which is what both references send and one of them insists on
    packed: bytes = msgpack.packb(frame, use_bin_type=False)
    assert len(packed) <= MAX_SENT_BYTES, "names are limited so that a handshake frame stays within one read of the peer"
    return packed


def _text(value: Any) -> str:
    return value[:MAX_NAME_BYTES].decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _refused(detail: str) -> InputError:
    return InputError(ErrorKind.HANDSHAKE_REFUSED, detail=detail)
