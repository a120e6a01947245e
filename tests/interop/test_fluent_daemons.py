"""Fluent Bit and fluentd, as installed on this machine, sending to our receiver with acknowledgements."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop import counterparts
from tests.interop.conftest import SHARED_KEY, Edge

COUNT = 100


@contextmanager
def running(program: str, *arguments: str | Path) -> Iterator[None]:
    try:
        found = counterparts.on_path(program, "--version")
    except counterparts.Absent as reason:
        pytest.skip(str(reason))
    process = subprocess.Popen([found, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def lines_to_tail(path: Path) -> Path:
    path.write_text("".join(f'{{"level":"warn","message":"record {number}","sequence":{number}}}\n' for number in range(COUNT)))
    return path


def assert_all_arrived(edge: Edge) -> None:
    rows = edge.rows(COUNT)
    assert sorted(int(row.attributes["sequence"]) for row in rows) == list(range(COUNT))
    assert {row.severity_text for row in rows} == {"warn"}


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls-shared-key"])
@pytest.mark.parametrize("compress", ["", "compress gzip"], ids=["forward", "gzip"])
def test_every_record_of_fluent_bit_arrives(edge: Edge, tmp_path: Path, compress: str, secure: bool) -> None:
    port = edge.secure_port if secure else edge.plain_port
    security = f"tls on\n    tls.ca_file {edge.ca_file}\n    shared_key {SHARED_KEY}\n    self_hostname fluent-bit" if secure else ""
    (tmp_path / "parsers.conf").write_text("[PARSER]\n    name json\n    format json\n")
    source = f"name tail\n    path {lines_to_tail(tmp_path / 'app.log')}\n    read_from_head on\n    parser json\n    tag interop"
    sink = f"name forward\n    match *\n    host localhost\n    port {port}\n    require_ack_response on\n    {compress}\n    {security}"
    config = tmp_path / "fluent-bit.conf"
    config.write_text(
        f"[SERVICE]\n    flush 0.2\n    parsers_file {tmp_path / 'parsers.conf'}\n[INPUT]\n    {source}\n[OUTPUT]\n    {sink}\n"
    )
    with running("fluent-bit", "-c", config):
        assert_all_arrived(edge)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls-shared-key"])
def test_every_record_of_fluentd_arrives(edge: Edge, tmp_path: Path, secure: bool) -> None:
    port = edge.secure_port if secure else edge.plain_port
    security = f"<security>\n  self_hostname fluentd\n  shared_key {SHARED_KEY}\n</security>" if secure else ""
    transport = f"transport tls\n  tls_cert_path {edge.ca_file}" if secure else ""
    config = tmp_path / "fluentd.conf"
    config.write_text(
        f"<source>\n  @type tail\n  path {lines_to_tail(tmp_path / 'app.log')}\n  pos_file {tmp_path / 'pos'}\n  read_from_head true\n"
        "  tag interop\n  <parse>\n    @type json\n  </parse>\n</source>\n"
        f"<match **>\n  @type forward\n  require_ack_response true\n  {transport}\n  {security}\n"
        f"  <buffer>\n    flush_interval 1s\n  </buffer>\n  <server>\n    host localhost\n    port {port}\n  </server>\n</match>\n"
    )
    with running("fluentd", "--no-supervisor", "-c", config):
        assert_all_arrived(edge)
