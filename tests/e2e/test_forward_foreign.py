"""Promises of the Forward exporter to peers that are no emp-pipe: strict stand-ins for Fluentd and Fluent Bit."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from emp_pipe.errors import ErrorKind, Retry
from emp_pipe.exporters.forward import ForwardExporterConfig
from emp_pipe.log.protocol import Topic
from tests.support.blocks import block
from tests.support.forward import running
from tests.support.forward_out import error_of, exporting, send, until
from tests.support.forward_peers import ForeignServer
from tests.support.telemetry import span_block


@pytest.mark.parametrize("dialect", ["fluentd", "fluent-bit"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_a_strict_foreign_server_gets_packed_forward_and_has_no_complaint(tmp_path: Path, dialect: str, compression: str):
    async with ForeignServer(dialect).serving() as server:
        async with exporting(tmp_path, server.port, shared_key="s3cret", compression=compression) as exporter:
            await asyncio.gather(*(send(exporter, block(range(n * 10, n * 10 + 10))) for n in range(20)))
        assert server.complaints == []
        assert len(server.entries) == 200
        assert server.connections <= 4


async def test_a_foreign_user_and_password_are_sent(tmp_path: Path):
    async with ForeignServer("fluentd", user=(b"ada", b"lovelace")).serving() as server:
        async with exporting(tmp_path, server.port, shared_key="s3cret", username="ada", password="lovelace") as exporter:
            await send(exporter, block([1]))
        async with exporting(tmp_path, server.port, shared_key="s3cret", username="ada", password="wrong") as exporter:
            assert (await error_of(exporter, block([1]))).kind is ErrorKind.UNAUTHENTICATED
        assert server.complaints == []


async def test_a_foreign_server_that_acknowledges_nothing_is_timed_out(tmp_path: Path):
    async with ForeignServer(acks=False).serving() as server:
        async with exporting(tmp_path, server.port, shared_key="s3cret", ack_timeout_s=0.1) as exporter:
            assert (await error_of(exporter, block([1]))).kind is ErrorKind.TIMED_OUT
        async with exporting(tmp_path, server.port, shared_key="s3cret", require_ack=False) as exporter:
            await send(exporter, block([2]))
            await until(lambda: len(server.chunks) == 2)


async def test_without_keepalive_each_chunk_has_a_connection_of_its_own(tmp_path: Path):
    async with ForeignServer().serving() as server:
        async with exporting(tmp_path, server.port, shared_key="s3cret", keepalive=False) as exporter:
            for n in range(3):
                await send(exporter, block([n]))
        assert server.connections == 3


async def test_a_chunk_keeps_its_id_on_every_retry(tmp_path: Path):
    sent = block([1])
    async with ForeignServer(close_before_ack_of=1).serving() as server, exporting(tmp_path, server.port, shared_key="s3cret") as exporter:
        assert (await error_of(exporter, sent)).kind is ErrorKind.UNREACHABLE
        await send(exporter, sent)
        assert server.chunks == [sent.block_id, sent.block_id]


async def test_spans_and_metrics_to_a_foreign_peer_are_refused_with_advice(tmp_path: Path):
    async with ForeignServer().serving() as server, exporting(tmp_path, server.port, shared_key="s3cret") as exporter:
        error = await error_of(exporter, span_block())
        assert (error.kind, error.retry) == (ErrorKind.REFUSED, Retry.NEVER)
        assert "otlp_http" in error.advice


async def test_without_a_shared_key_only_logs_are_read_and_the_start_says_where_the_rest_can_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    async with exporting(tmp_path, 1) as exporter:
        assert exporter.topics == {Topic.LOGS}
        assert "sends logs only" in caplog.text
        assert "otlp_grpc" in caplog.text
    async with exporting(tmp_path, 1, shared_key="k") as exporter:
        assert exporter.topics == {Topic.LOGS, Topic.TRACES, Topic.METRICS}


def test_other_signals_alone_without_a_shared_key_are_refused_as_a_setting():
    with pytest.raises(ValidationError, match="only logs can be sent: set a `shared_key`"):
        ForwardExporterConfig(endpoint="c:24224", only={"signals": ["traces", "metrics"]})  # type: ignore[arg-type]
    assert ForwardExporterConfig(endpoint="c:24224", shared_key="k", only={"signals": ["traces"]})  # type: ignore[arg-type]


async def test_without_a_shared_key_another_emp_pipe_is_a_foreign_peer_and_rows_arrive_the_same(tmp_path: Path):
    sent = block(range(50), padding_bytes=10)
    async with running(tmp_path) as server, exporting(tmp_path, server.port) as exporter:
        await send(exporter, sent)
        rows = server.intake.rows()
        assert [int(row.body) for row in rows] == list(range(50))
        assert [row.time_unix_nano for row in rows] == [1_760_000_000_000_000_000 + n for n in range(50)]
        assert {row.attributes["padding"] for row in rows} == {"x" * 10}
