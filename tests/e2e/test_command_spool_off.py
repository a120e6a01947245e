"""The command with its log in Redis while Redis is away and there is no spool: what each sender is told; and when there is one."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub

from tests.support.command import Running, run, running, until
from tests.support.forward import message_frame
from tests.support.redis_command import LIMIT_BYTES
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.spool_central import Central, otlp

pytestmark = needs_redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(maxmemory_bytes=LIMIT_BYTES) as started:
        yield started


@pytest.fixture
def central(tmp_path: Path, server: RedisServer) -> Central:
    return Central(tmp_path, server)


# without a spool: what each side is told


@pytest.fixture(params=["in_traffic", "at_start"])
def away(request: pytest.FixtureRequest, central: Central) -> Iterator[tuple[Central, Running]]:
    """A running central without a spool whose Redis has gone away, or was never there."""
    central.set_up("enabled: false")
    if request.param == "at_start":
        central.server.kill()
    with running(*central.arguments) as process:
        if request.param == "in_traffic":
            assert central.post(1)[0] == 200
            central.server.kill()
        until(lambda: central.get("/readyz")[0] == 503, "not ready")
        yield central, process


def test_without_a_spool_it_is_said_what_to_do(away: tuple[Central, Running]) -> None:
    central, process = away
    assert "buffer.spool.enabled (EMP_BUFFER_REDIS_SPOOL)" in process.wait_for("while Redis is away nothing is acknowledged")
    assert "while it is away senders wait" in process.wait_for("buffer: ")
    assert "no connection to Redis" in json.loads(central.get("/readyz")[1])["reason"]
    assert central.metric("emp_pipe_spool_state", state="off") == 1
    assert central.metric("emp_pipe_redis_away") == 1
    assert not (central.data_dir / "spool").exists()


def test_without_a_spool_otlp_http_answers_503_with_retry_after(away: tuple[Central, Running]) -> None:
    central, _ = away
    status, headers = central.post(2)
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    central.server.start()
    until(lambda: central.post(2)[0] == 200, "it takes records when Redis is back")


def test_without_a_spool_otlp_grpc_answers_unavailable_with_retry_info(away: tuple[Central, Running]) -> None:
    central, _ = away
    with grpc.insecure_channel(f"127.0.0.1:{central.grpc_port}") as channel:
        export = LogsServiceStub(channel).Export  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as refused:
            export(otlp(2), timeout=20)
        error: Any = refused.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        trailers = dict(error.trailing_metadata())
        assert RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"]).retry_delay.ToNanoseconds() > 0
        central.server.start()

        def taken() -> bool:
            try:
                export(otlp(2), timeout=20)
            except grpc.RpcError:
                return False
            return True

        until(taken, "it takes records when Redis is back")


def test_without_a_spool_forward_is_not_read_and_acknowledged_when_redis_is_back(away: tuple[Central, Running]) -> None:
    central, _ = away
    with socket.create_connection(("127.0.0.1", central.port), timeout=2) as peer:
        peer.sendall(message_frame(7, chunk="held"))
        with pytest.raises(TimeoutError):
            peer.recv(100)
        central.server.start()
        peer.settimeout(30)
        assert b"held" in peer.recv(100)


# settings


@pytest.mark.parametrize(
    ("variables", "arguments", "says"),
    [
        ({"RAILWAY_VOLUME_MOUNT_PATH": "/data"}, (), "true  # /data/emp-pipe/central is on RAILWAY_VOLUME_MOUNT_PATH"),
        ({"RAILWAY_VOLUME_MOUNT_PATH": "/data", "EMP_DATA_DIR": "/tmp/x"}, (), "false  # /tmp/x is not on RAILWAY_VOLUME_MOUNT_PATH"),
        ({"RAILWAY_PROJECT_ID": "p", "EMP_DATA_DIR": "/data"}, (), "false  # Railway without a volume: no RAILWAY_VOLUME_MOUNT_PATH"),
        ({"EMP_DATA_DIR": "/data"}, (), "true  # data_dir: environment EMP_DATA_DIR"),
        ({}, ("--data-dir", "/data"), "true  # data_dir: --data-dir"),
        ({"STATE_DIRECTORY": "/var/lib/emp-pipe"}, (), "true  # environment STATE_DIRECTORY"),
        ({}, (), "false  # nobody has named a data_dir that lasts"),
        ({"EMP_BUFFER_REDIS_SPOOL": "true"}, (), "true  # environment EMP_BUFFER_REDIS_SPOOL"),
        ({"EMP_BUFFER_REDIS_SPOOL": "off", "EMP_DATA_DIR": "/data"}, (), "false  # environment EMP_BUFFER_REDIS_SPOOL"),
        ({"EMP_BUFFER_REDIS_SPOOL": "auto", "EMP_DATA_DIR": "/data"}, (), "true  # data_dir: environment EMP_DATA_DIR"),
        ({"EMP_BUFFER_REDIS_SPOOL_DIR": "/data/spool"}, (), "true  # buffer.spool.directory is named"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_whether_there_is_a_spool_is_printed_with_its_reason(variables: dict[str, str], arguments: tuple[str, ...], says: str) -> None:
    result = run("central", "--print-config", *arguments, EMP_BUFFER_REDIS_URL="redis://log:6379", **variables)
    assert result.returncode == 0, result.stderr
    assert f"enabled: {says}" in result.stdout.partition("  spool:")[2]


def test_every_setting_of_the_spool_is_taken_from_a_file_and_from_the_command_line(central: Central) -> None:
    central.set_up('enabled: true, directory: "/data/spool", max_bytes: 1000, min_free_bytes: 2, after_s: 3, retry_max_s: 4')
    printed = run(*central.arguments, "--print-config", "--set", "buffer.spool.max_bytes=2000").stdout.partition("  spool:")[2]
    found = re.findall(r"^    (\w+: \S+)", printed, re.MULTILINE)[:6]
    assert found == ["enabled: true", "directory: /data/spool", "max_bytes: 2000", "min_free_bytes: 2", "after_s: 3.0", "retry_max_s: 4.0"]


def test_a_word_that_is_neither_is_refused(central: Central) -> None:
    result = run("central", "--print-config", EMP_BUFFER_REDIS_URL="redis://log:6379", EMP_BUFFER_REDIS_SPOOL="maybe")
    assert result.returncode == 2
    assert "EMP_BUFFER_REDIS_SPOOL" in result.stderr
