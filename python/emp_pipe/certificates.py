"""Certificates for a fleet: an authority of its own, and what it issues for central and for each machine.

A key file is for its owner only from its first byte on, a directory that is made too. Nothing is overwritten unless that is asked for, and
then in one step, the key before the certificate: a process that watches both keeps the old pair until the new one is whole.
Not here: the command (`cli_init.py`), how a process uses the files (`tls.py`).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from emp_pipe.errors import ConfigError, ErrorKind

if TYPE_CHECKING:  # an extra: only the machine where the authority's key lies needs it
    from cryptography import x509

KeyType = Literal["ecdsa", "rsa", "ed25519"]
KEY_TYPES: tuple[str, ...] = get_args(KeyType)
AUTHORITY = "ca"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(?:\*\.)?(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_CLOCKS_DIFFER_BY = timedelta(minutes=5)
_RSA_BITS = 3072


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key on disk."""

    name: str
    hosts: tuple[str, ...]
    cert_file: Path
    key_file: Path
    not_after: datetime


class Authority:
    """Signs for one fleet; `ca.pem` is for everybody, `ca.key` for nobody else."""

    def __init__(self, directory: Path, certificate: x509.Certificate, key: Any) -> None:
        self.directory = directory
        self.cert_file = directory / f"{AUTHORITY}.pem"
        self.key_file = directory / f"{AUTHORITY}.key"
        self.not_after = certificate.not_valid_after_utc
        self._certificate = certificate
        self._key = key

    @classmethod
    def exists(cls, directory: Path) -> bool:
        return any((directory / f"{AUTHORITY}{ending}").exists() for ending in (".pem", ".key"))

    @classmethod
    def create(cls, directory: Path, *, key_type: KeyType, days: int, now: datetime, force: bool = False) -> Authority:
        """Make an authority and write its files. Raises ConfigError where there is one and `force` is not given."""
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(directory, f"cannot be made ({error.strerror})") from None
        key = _new_key(key_type)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"emp-pipe fleet authority {now:%Y-%m-%d}")])
        usage = {"key_cert_sign": True, "crl_sign": True, "digital_signature": False, "key_encipherment": False}
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCKS_DIFFER_BY)
            .not_valid_after(_until(now, days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, _hash_of(key))
        )
        authority = cls(directory, certificate, key)
        _write_pair(authority.cert_file, certificate, authority.key_file, key, force=force)
        return authority

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """Return the authority whose files lie in a directory. Raises ConfigError that names the file that cannot be used."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        cert_file, key_file = directory / f"{AUTHORITY}.pem", directory / f"{AUTHORITY}.key"
        certificate = _loaded(cert_file, x509.load_pem_x509_certificate)
        key = _loaded(key_file, lambda data: serialization.load_pem_private_key(data, None))
        if key.public_key() != certificate.public_key():
            raise _unusable(key_file, f"is not the key of {cert_file}")
        return cls(directory, certificate, key)

    def issue(self, name: str, hosts: Sequence[str], *, key_type: KeyType, days: int, now: datetime, force: bool = False) -> Issued:
        """Write a certificate, with a new key, for central or a machine. Raises ConfigError where there is one and `force` is not given."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        check_names(name, hosts)
        if now >= self.not_after:
            raise _unusable(self.cert_file, "has expired; make a new authority with --new-ca --force")
        key = _new_key(key_type)
        usage = {"key_cert_sign": False, "crl_sign": False, "digital_signature": True, "key_encipherment": key_type == "rsa"}
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCKS_DIFFER_BY)
            .not_valid_after(min(_until(now, days), self.not_after))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(**usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_alternative_name(host) for host in hosts or (name,)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, _hash_of(self._key))
        )
        cert_file, key_file = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        _write_pair(cert_file, certificate, key_file, key, force=force)
        return Issued(name, tuple(hosts or (name,)), cert_file, key_file, certificate.not_valid_after_utc)

    def renew(self, name: str, *, key_type: KeyType, days: int, now: datetime) -> Issued:
        """Issue anew what was issued for a name, for the same hosts. Raises ConfigError where there is none."""
        from cryptography import x509

        old = _loaded(self.directory / f"{name}.pem", x509.load_pem_x509_certificate)
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        return self.issue(name, hosts, key_type=key_type, days=days, now=now, force=True)


def check_names(name: str, hosts: Sequence[str]) -> None:
    """Raise ConfigError where a name cannot be that of files, or a host is none."""
    if not _NAME.fullmatch(name) or name == AUTHORITY:
        raise _unusable(Path(name), "is no name for a machine: letters, digits, dot, dash and underscore, and not `ca`")
    for host in hosts or (name,):
        _alternative_name(host)


def check_installed() -> None:
    """Raise ConfigError with advice where the extra is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        detail = "making certificates needs the package cryptography"
        advice = 'install it on this machine with  pip install "emp-pipe[certs]"'
        raise ConfigError(ErrorKind.CONFIG_INVALID, place="init certs", detail=detail, advice=advice) from None


def _until(now: datetime, days: int) -> datetime:
    try:
        return now + timedelta(days=days)
    except OverflowError:
        return datetime(9999, 12, 31, tzinfo=UTC)


def _new_key(key_type: KeyType) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if key_type == "rsa":
        return rsa.generate_private_key(65_537, _RSA_BITS)
    return ed25519.Ed25519PrivateKey.generate() if key_type == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def _hash_of(key: Any) -> Any:
    """Return what a signature with this key is made over; Ed25519 has its own."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _usage(**allowed: bool) -> x509.KeyUsage:
    from cryptography import x509

    never = ("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    return x509.KeyUsage(**allowed, **dict.fromkeys(never, False))


def _alternative_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise _unusable(Path(host), "is no host name and no address; write it as clients do, such as central.example or 10.0.0.5")
    return x509.DNSName(host)


def _write_pair(cert_file: Path, certificate: x509.Certificate, key_file: Path, key: Any, *, force: bool) -> None:
    from cryptography.hazmat.primitives import serialization

    for path in (key_file, cert_file):
        if path.exists() and not force:
            raise ConfigError(
                ErrorKind.CONFIG_INVALID,
                place=str(path),
                detail="exists and is not overwritten",
                advice="give --renew NAME for a new certificate of the same machine, or --force",
            )
    pem = serialization.Encoding.PEM
    key_text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _replace(key_file, key_text, 0o600)
    _replace(cert_file, certificate.public_bytes(pem), 0o644)


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Put a file in its place in one step; its content is never readable with wider permissions than its own."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise _unusable(path, f"cannot be written ({error.strerror})") from None


def _loaded(path: Path, load: Any) -> Any:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror})") from None
    except (ValueError, TypeError):
        raise _unusable(path, "is not PEM, or is encrypted") from None


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(ErrorKind.TLS_FILES, place=str(path), detail=why, advice="correct it, or name another")
