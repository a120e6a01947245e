"""Promises of `emp-pipe init certs`: what it makes works between two roles as it tells, keys are nobody else's, nothing is overwritten."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgpack
import pytest
from cryptography import x509

from tests.support.command import Running, run, running, until
from tests.support.forward import message_frame

LOOPBACK = ("--set", "receivers.forward.listen=127.0.0.1:0", "--set", "http.listen=127.0.0.1:0")


def made(directory: Path, *arguments: str) -> str:
    result = run("init", "certs", "--dir", str(directory), *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def told(output: str, role: str) -> dict[str, str]:
    """Return the variables that the command tells to set for a role."""
    part = output.partition(f"(emp-pipe {role})")[2].partition("or in YAML")[0]
    return dict(re.findall(r"^  ([A-Z_]+)=(\S+)", part, re.MULTILINE)) | {"FLUENTD_SHARED_KEY": "one secret of the fleet"}


def port_of(command: Running, receiver: str) -> int:
    def found() -> int:
        for line in map(json.loads, list(command.lines)):
            if line["source"] == receiver and (match := re.search(r"listening on \S*?:(\d+)", line["message"])):
                return int(match[1])
        return 0

    port: int = until(found, f"{receiver} listens")
    return port


def certificate(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())


def sent_with_ack(port: int, number: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
        peer.sendall(message_frame(number, chunk=f"chunk-{number}"))
        assert msgpack.unpackb(peer.recv(1000)) == {"ack": f"chunk-{number}"}


@pytest.mark.parametrize("key_type", ["ecdsa", "rsa", "ed25519"])
def test_two_roles_reach_each_other_over_mutual_tls_with_what_it_tells_and_nobody_else_gets_in(tmp_path: Path, key_type: str) -> None:
    certs = tmp_path / "certs"
    output = made(certs, "--central", "localhost", "--machine", "gpu-7", "--key-type", key_type)
    central_says, edge_says = told(output, "central"), told(output, "edge")
    assert edge_says["FLUENTD_HOST"] == "localhost"
    with running("central", "--data-dir", str(tmp_path / "c"), *LOOPBACK, EMP_FORWARD_LISTEN="127.0.0.1:0", **central_says) as central:
        port = port_of(central, "forward/secure")
        more = {"FLUENTD_PORT": str(port), "FLUENTD_SECURE": "true"}
        with running("edge", "--data-dir", str(tmp_path / "e"), *LOOPBACK, **edge_says, **more) as edge:
            sent_with_ack(port_of(edge, "forward"), 7)

            def arrived() -> bool:
                return any("record 7" in path.read_text() for path in (tmp_path / "c").rglob("*.jsonl"))

            until(arrived, "the record reaches central")
        context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as stranger,
        ):
            assert stranger.recv(1000) == b"", "no HELO without a certificate"
        central.wait_for("TLS handshake failed")


def test_keys_are_for_their_owner_only_and_a_directory_that_is_made_too(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    made(certs, "--central", "central.example", "--machine", "gpu-7")
    assert stat.S_IMODE(certs.stat().st_mode) == 0o700
    for name in ("ca", "central", "gpu-7"):
        assert stat.S_IMODE((certs / f"{name}.key").stat().st_mode) == 0o600, name
    assert sorted(path.name for path in certs.iterdir()) == sorted(
        f"{name}.{ending}" for name in ("ca", "central", "gpu-7") for ending in ("pem", "key")
    )


def test_names_and_addresses_are_those_given_and_the_authority_may_sign_nothing_but_certificates(tmp_path: Path) -> None:
    made(tmp_path, "--central", "central.example", "--central", "10.0.0.5", "--machine", "gpu-7=gpu-7.lan,::1")
    for name, hosts, addresses in (("central", ["central.example"], ["10.0.0.5"]), ("gpu-7", ["gpu-7.lan"], ["::1"])):
        names = certificate(tmp_path, name).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == hosts
        assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == addresses
        assert not certificate(tmp_path, name).extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    authority = certificate(tmp_path, "ca").extensions
    assert authority.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not authority.get_extension_for_class(x509.KeyUsage).value.digital_signature


def test_a_certificate_is_valid_as_long_as_was_said_and_no_longer_than_its_authority(tmp_path: Path) -> None:
    made(tmp_path, "--machine", "short", "--days", "10", "--ca-days", "20")
    made(tmp_path, "--machine", "long", "--days", "999")
    now = datetime.now(UTC)
    assert abs(certificate(tmp_path, "short").not_valid_after_utc - now - timedelta(days=10)) < timedelta(hours=1)
    assert certificate(tmp_path, "long").not_valid_after_utc == certificate(tmp_path, "ca").not_valid_after_utc


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    made(tmp_path, "--machine", "gpu-7")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = run("init", "certs", "--dir", str(tmp_path), "--machine", "gpu-7")
    assert result.returncode == 2
    assert "gpu-7.key: exists and is not overwritten; give --renew NAME" in result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    made(tmp_path, "--machine", "gpu-7", "--force")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"gpu-7.pem", "gpu-7.key"}, "the authority stays"
    made(tmp_path, "--machine", "gpu-7", "--force", "--new-ca")
    assert (tmp_path / "ca.key").read_bytes() != before["ca.key"]


def test_one_machines_certificate_is_renewed_by_the_authority_that_is_there_for_the_same_names(tmp_path: Path) -> None:
    made(tmp_path, "--machine", "gpu-7=gpu-7.lan,10.0.0.7", "--machine", "gpu-8")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    old = certificate(tmp_path, "gpu-7")
    made(tmp_path, "--renew", "gpu-7", "--days", "30")
    new = certificate(tmp_path, "gpu-7")
    san = x509.SubjectAlternativeName
    assert new.extensions.get_extension_for_class(san).value == old.extensions.get_extension_for_class(san).value
    assert new.serial_number != old.serial_number
    new.verify_directly_issued_by(certificate(tmp_path, "ca"))
    changed = {path.name for path in tmp_path.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"gpu-7.pem", "gpu-7.key"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "names nobody to issue a certificate for; give --central HOST"),
        (("--renew", "gpu-7"), "there is no authority; name its directory with --dir"),
        (("--machine", "../x"), "is no name for a machine"),
        (("--machine", "ca"), "is no name for a machine"),
        (("--central", "a host"), "is no host name and no address"),
        (("--central", "x", "--key-type", "dsa"), "must be ecdsa, rsa, ed25519"),
        (("--central", "x", "--new-ca"), "needs --force"),
        (("--central", "x", "--days", "0"), "--days"),
    ],
)
def test_what_cannot_be_made_is_said_with_what_to_do(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = run("init", "certs", "--dir", str(tmp_path / "certs"), *arguments)
    assert result.returncode == 2
    assert said in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())
    assert not (tmp_path / "certs").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("init", "certs", "--dir", str(tmp_path / "file" / "certs"), "--central", "localhost")
    assert result.returncode == 2
    assert result.stderr.startswith(f"emp-pipe: {tmp_path}/file/certs: cannot be made (Not a directory)")


def test_an_authority_whose_key_is_another_ones_signs_nothing(tmp_path: Path) -> None:
    made(tmp_path / "a", "--machine", "m")
    made(tmp_path / "b", "--machine", "m")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    result = run("init", "certs", "--dir", str(tmp_path / "a"), "--machine", "n")
    assert result.returncode == 2
    assert f"{tmp_path}/a/ca.key: is not the key of {tmp_path}/a/ca.pem" in result.stderr
