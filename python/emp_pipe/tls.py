"""TLS for every listener and every client: the settings, the contexts, and their reload when the files change.

A context is TLS 1.2 or later, with Python's own cipher choice. What cannot be loaded is a ConfigError of kind TLS_FILES that names the
file. `WatchedContext` looks at the files' times now and then: a renewed certificate is used without a restart, a torn one changes nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import Field, model_validator

from emp_pipe.clock import Clock
from emp_pipe.component import ComponentConfig
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.logs import RateLimitedLogger, get_logger

_CHECK_INTERVAL_S = 5.0

_T = TypeVar("_T")


class TlsServerConfig(ComponentConfig):
    """The certificate that a listener shows, and whether it asks its clients for theirs."""

    cert_file: Path = Field(description="PEM: the certificate, then the intermediate ones.")
    key_file: Path = Field(description="PEM: the private key, without a pass phrase.")
    client_ca_file: Path | None = Field(None, description="PEM: with it, only clients with a certificate of these authorities get in.")

    def files(self) -> list[Path]:
        return [path for path in (self.cert_file, self.key_file, self.client_ca_file) if path is not None]


class TlsClientConfig(ComponentConfig):
    """How a client checks its server, and what it shows of itself."""

    ca_file: Path | None = Field(None, description="PEM: trust these authorities instead of the system's.")
    cert_file: Path | None = Field(None, description="PEM: the certificate to show to a server that asks for one.")
    key_file: Path | None = Field(None, description="PEM: the private key of `cert_file`, without a pass phrase.")
    server_name: str | None = Field(None, description="The name in the server's certificate, where it is not the host of the address.")
    insecure_skip_verify: bool = Field(
        False, description="INSECURE: accept any certificate. Anybody on the way can read and change what is sent."
    )

    @model_validator(mode="after")
    def _certificate_and_key_belong_together(self) -> TlsClientConfig:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("`cert_file` and `key_file` go together")
        return self

    def files(self) -> list[Path]:
        return [path for path in (self.ca_file, self.cert_file, self.key_file) if path is not None]


def server_context(config: TlsServerConfig, place: str) -> ssl.SSLContext:
    """Return the context of a listener. Raises ConfigError (TLS_FILES) that names the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, config.cert_file, config.key_file, place)
    if config.client_ca_file is not None:
        _load_authorities(context, config.client_ca_file, place)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(config: TlsClientConfig, place: str) -> ssl.SSLContext:
    """Return the context of a client. Raises ConfigError (TLS_FILES) that names the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        get_logger("tls").warning("%s: insecure_skip_verify is set: the server's certificate is not checked", place)
    elif config.ca_file is not None:
        _load_authorities(context, config.ca_file, place)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if config.cert_file is not None and config.key_file is not None:
        _load_certificate(context, config.cert_file, config.key_file, place)
    return context


class Watched(Generic[_T]):
    """What is made of files, and follows them. `current()` is cheap: it looks at the files' times every few seconds at most.

    A change that cannot be loaded is logged, and the last good one stays."""

    def __init__(self, build: Callable[[], _T], files: Sequence[Path], clock: Clock, place: str) -> None:
        self._build = build
        self._files = files
        self._clock = clock
        self._place = place
        self._log = RateLimitedLogger(get_logger("tls"), interval_s=60.0)
        self._stamps = self._read_stamps()
        self._made = build()
        self._next_look_s = clock.monotonic_s() + _CHECK_INTERVAL_S

    def current(self) -> _T:
        now_s = self._clock.monotonic_s()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _CHECK_INTERVAL_S
            if self._read_stamps() != self._stamps:
                try:
                    self.reload()
                except ConfigError as error:
                    self._log.warning(self._place, "%s The certificate loaded before stays in use.", error)
        return self._made

    def reload(self) -> None:
        """Load the files again now. Raises ConfigError (TLS_FILES); then the last good ones stay."""
        stamps = self._read_stamps()
        self._made = self._build()
        self._stamps = stamps

    def _read_stamps(self) -> list[tuple[int, int, int]]:
        stamps = []
        for path in self._files:
            try:
                seen = path.stat()
                stamps.append((seen.st_mtime_ns, seen.st_size, seen.st_ino))
            except OSError:
                stamps.append((0, 0, 0))
        return stamps


class WatchedContext(Watched[ssl.SSLContext]):
    """A context that follows its files."""

    @classmethod
    def of_server(cls, config: TlsServerConfig, clock: Clock, place: str, protocols: Sequence[str] = ()) -> WatchedContext:
        return cls(lambda: _speaking(server_context(config, place), protocols), config.files(), clock, place)

    @classmethod
    def of_client(cls, config: TlsClientConfig, clock: Clock, place: str, protocols: Sequence[str] = ()) -> WatchedContext:
        return cls(lambda: _speaking(client_context(config, place), protocols), config.files(), clock, place)


def _speaking(context: ssl.SSLContext, protocols: Sequence[str]) -> ssl.SSLContext:
    """Return the context with the protocols that it offers in the handshake (ALPN)."""
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def common_name(certificate: Mapping[str, Any] | None) -> str:
    """Return the common name in a certificate as `ssl` gives it, else its first alternative name; "" without one."""
    if not certificate:
        return ""
    for attributes in certificate.get("subject", ()):
        for key, value in attributes:
            if key == "commonName":
                return str(value)
    return next((str(value) for _, value in certificate.get("subjectAltName", ())), "")


def _unusable(place: str, path: Path, why: str) -> ConfigError:
    return ConfigError(ErrorKind.TLS_FILES, place=place, detail=f"{path}: {why}")


def _read_pem(path: Path, marker: bytes, what: str, place: str) -> None:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _unusable(place, path, error.strerror or str(error)) from None
    if marker not in text:
        raise _unusable(place, path, f"holds no {what} in PEM")


def _load_certificate(context: ssl.SSLContext, cert_file: Path, key_file: Path, place: str) -> None:
    _read_pem(cert_file, b"-----BEGIN CERTIFICATE-----", "certificate", place)
    _read_pem(key_file, b"PRIVATE KEY-----", "private key", place)

    def no_pass_phrase() -> str:  # without it OpenSSL would ask on the terminal
        raise _unusable(place, key_file, "the key is encrypted; store it without a pass phrase")

    try:
        context.load_cert_chain(cert_file, key_file, password=no_pass_phrase)
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            raise _unusable(place, key_file, f"is not the key of {cert_file}") from None
        raise _unusable(place, cert_file, f"it or {key_file} cannot be used ({error.reason or error})") from None


def _load_authorities(context: ssl.SSLContext, path: Path, place: str) -> None:
    _read_pem(path, b"-----BEGIN CERTIFICATE-----", "certificate", place)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise _unusable(place, path, f"cannot be used ({error.reason or error})") from None
