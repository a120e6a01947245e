"""Promises of the TLS settings: contexts, errors that name the file, reload."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme

from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.tls import TlsClientConfig, TlsServerConfig, WatchedContext, client_context, server_context


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def unix_nano(self) -> int:
        return int(self.now_s * 1e9)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


def _write(directory: Path, authority: trustme.CA, name: str) -> TlsServerConfig:
    issued = authority.issue_cert("localhost")
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return TlsServerConfig(cert_file=cert, key_file=key)


def test_contexts_refuse_what_is_older_than_tls_1_2(tmp_path: Path):
    config = _write(tmp_path, trustme.CA(), "server")
    for context in (server_context(config, "forward"), client_context(TlsClientConfig(), "exporter")):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_client_checks_certificate_and_name_unless_told_otherwise_in_so_many_words():
    context = client_context(TlsClientConfig(), "exporter")
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    context = client_context(TlsClientConfig(insecure_skip_verify=True), "exporter")
    assert (context.check_hostname, context.verify_mode) == (False, ssl.CERT_NONE)


def test_a_client_authority_makes_the_clients_certificate_compulsory(tmp_path: Path):
    config = _write(tmp_path, trustme.CA(), "server")
    assert server_context(config, "forward").verify_mode is ssl.CERT_NONE
    mutual = config.model_copy(update={"client_ca_file": config.cert_file})
    assert server_context(mutual, "forward").verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("broken", ["missing", "no_pem", "torn_pem", "other_key", "encrypted"])
def test_an_unusable_file_is_named_in_the_error(tmp_path: Path, broken: str):
    config = _write(tmp_path, trustme.CA(), "server")
    named = config.key_file
    if broken == "missing":
        config.key_file.unlink()
    elif broken == "no_pem":
        named = config.cert_file
        named.write_text("hello")
    elif broken == "torn_pem":
        named = config.cert_file
        named.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif broken == "other_key":
        other = _write(tmp_path, trustme.CA(), "other")
        config.key_file.write_bytes(other.key_file.read_bytes())
    else:
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(config.key_file.read_bytes(), None)
        config.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pass phrase")
            )
        )
    with pytest.raises(ConfigError) as caught:
        server_context(config, "forward/secure")
    assert caught.value.kind is ErrorKind.TLS_FILES
    assert str(named) in str(caught.value)
    assert "forward/secure" in str(caught.value)


def test_a_renewed_certificate_is_used_without_a_restart_and_a_torn_one_changes_nothing(tmp_path: Path):
    config = _write(tmp_path, trustme.CA(), "server")
    clock = _Clock()
    watched = WatchedContext.of_server(config, clock, "forward")
    first = watched.current()
    renewed = _write(tmp_path, trustme.CA(), "renewed")
    config.cert_file.write_bytes(renewed.cert_file.read_bytes())
    assert watched.current() is first, "the files are not looked at on every connection"
    clock.now_s += 60
    assert watched.current() is first, "a certificate without its key changes nothing"
    os.replace(renewed.key_file, config.key_file)
    clock.now_s += 60
    assert watched.current() is not first


def test_a_client_certificate_without_its_key_is_refused_by_the_settings(tmp_path: Path):
    with pytest.raises(ValueError, match="go together"):
        TlsClientConfig(cert_file=tmp_path / "client.pem")
