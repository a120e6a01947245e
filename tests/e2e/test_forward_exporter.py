"""Promises of the Forward exporter between two emp-pipes, over TLS, and when peers fail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.errors import ErrorKind, Retry
from emp_pipe.exporters.forward import ForwardExporterConfig, parse_endpoint
from tests.support.blocks import block, numbers_in
from tests.support.forward import PATIENCE_S, Certificates, RecordingIntake, running
from tests.support.forward_out import error_of, exporting, open_exporter, send, send_until_sent, until
from tests.support.telemetry import metric_block, span_block

# --- between two emp-pipes --------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
async def test_a_block_arrives_at_another_emp_pipe_as_it_was_sent_to_the_byte(tmp_path: Path, codec: str):
    sent = block(range(100), topic="events", codec=codec).with_flags(decided=True)
    async with running(tmp_path, shared_key="k") as server, exporting(tmp_path, server.port, shared_key="k") as exporter:
        await send(exporter, sent)
        (arrival,) = server.intake.arrivals
        (arrived,) = arrival.blocks
        assert (arrived.header, bytes(memoryview(arrived))) == (sent.header, bytes(memoryview(sent)))
        assert arrival.batch is None, "it is not normalised again"
        assert (arrival.received, [key.chunk for key in arrival.chunks]) == (100, [sent.block_id.encode()])
        assert arrival.chunks[0].peer == "gpu-7.edge"


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.parametrize(
    "flags",
    [{}, {"decided": True}, {"red_done": True}, {"decided": True, "red_done": True}, {"aggregated": True}],
    ids=lambda flags: "-".join(flags) or "none",
)
@pytest.mark.parametrize("signal", ["traces", "metrics"])
async def test_spans_and_metrics_pass_between_emp_pipes_to_the_byte_with_what_was_done_to_them(
    tmp_path: Path, signal: str, flags: dict[str, bool], codec: str
):
    sent = (span_block(7, codec=codec) if signal == "traces" else metric_block(7, codec=codec)).with_flags(**flags)
    async with running(tmp_path, shared_key="k") as server, exporting(tmp_path, server.port, shared_key="k") as exporter:
        await send(exporter, sent)
        (arrived,) = [one for arrival in server.intake.arrivals for one in arrival.blocks]
    assert (arrived.header, bytes(memoryview(arrived))) == (sent.header, bytes(memoryview(sent)))
    assert {name for name in ("decided", "red_done", "aggregated") if getattr(arrived, name)} == set(flags)


async def test_a_block_sent_again_is_acknowledged_and_kept_once(tmp_path: Path):
    sent = block(range(10))
    async with running(tmp_path, shared_key="k") as server, exporting(tmp_path, server.port, shared_key="k") as exporter:
        for _ in range(3):
            await send(exporter, sent)
        assert len(server.intake.arrivals) == 1
        assert len(server.intake.duplicates) == 2


async def test_a_block_whose_ack_was_lost_is_recognised_when_it_comes_again(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    sent = block(range(10))
    async with running(tmp_path, shared_key="k", intake=intake) as server, exporting(tmp_path, server.port, shared_key="k") as exporter:
        sending = asyncio.ensure_future(error_of(exporter, sent))
        await intake.until(lambda one: one.waiting == 1)
        for connection in list(server.receiver._hub.connections):
            connection.close(at_once=True)
        assert (await sending).kind is ErrorKind.UNREACHABLE
        intake.auto = True
        intake.commit()
        await send(exporter, sent)
        assert (len(intake.arrivals), len(intake.duplicates)) == (1, 1)


async def test_many_blocks_are_under_way_on_one_connection_and_acks_find_their_block(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, shared_key="k", intake=intake) as server, exporting(tmp_path, server.port, shared_key="k") as exporter:
        blocks = [block(range(n, n + 1)) for n in range(16)]
        sending = [asyncio.ensure_future(send(exporter, one)) for one in blocks]
        await intake.until(lambda one: one.waiting == 16)
        assert len(server.receiver._hub.connections) == 1
        assert not any(one.done() for one in sending)
        intake.commit()
        await asyncio.gather(*sending)
        assert sorted(number for arrival in intake.arrivals for one in arrival.blocks for number in numbers_in(one)) == list(range(16))


async def test_no_ack_no_success(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, shared_key="k", intake=intake) as server, exporting(tmp_path, server.port, shared_key="k") as exporter:
        error = await error_of(exporter, block([1]), timeout_s=0.2)
        assert (error.kind, error.retry) == (ErrorKind.TIMED_OUT, Retry.LATER)
        assert exporter._shared is not None
        assert not exporter._shared.is_open, "an ack that comes late must not be taken for another's"


async def test_blocks_from_a_peer_that_did_not_prove_to_be_one_of_us_are_refused(tmp_path: Path):
    sent = block(range(10))
    async with running(tmp_path) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(sent.to_forward_frame())
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        await until(lambda: server.metric("forward_received_foreign_blocks_total") == 1)
        assert [one for arrival in server.intake.arrivals for one in arrival.blocks] == []
        del reader


async def test_a_send_that_is_cancelled_leaves_nothing_behind(tmp_path: Path):
    intake = RecordingIntake()
    intake.auto = False
    async with running(tmp_path, shared_key="k", intake=intake) as server, exporting(tmp_path, server.port, shared_key="k") as exporter:
        sending = asyncio.ensure_future(send(exporter, block([1])))
        await intake.until(lambda one: one.waiting == 1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert exporter._shared is not None
        assert exporter._shared._pending == {}
        intake.auto = True
        intake.commit()
        await send(exporter, block([2]))
        assert len(server.receiver._hub.connections) == 1


async def test_a_cancelled_handshake_closes_its_connection(tmp_path: Path):
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with silent, exporting(tmp_path, silent.sockets[0].getsockname()[1], shared_key="k") as exporter:
        sending = asyncio.ensure_future(send(exporter, block([1])))
        await asyncio.sleep(0.05)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not any(link.is_open for link in exporter._links)


# --- when peers fail --------------------------------------------------------------------------------


async def test_a_wrong_key_is_unauthenticated_and_waits_for_the_configuration(tmp_path: Path):
    async with running(tmp_path, shared_key="right") as server, exporting(tmp_path, server.port, shared_key="wrong") as exporter:
        error = await error_of(exporter, block([1]))
        assert (error.kind, error.retry) == (ErrorKind.UNAUTHENTICATED, Retry.AFTER_CONFIG_CHANGE)
        assert "shared_key mismatch" in str(error)
        assert "wrong" not in str(error)


async def test_a_key_where_the_peer_has_none_times_out_with_advice(tmp_path: Path):
    settings = {"shared_key": "k", "handshake_timeout_s": 0.1}
    async with running(tmp_path) as server, exporting(tmp_path, server.port, **settings) as exporter:
        error = await error_of(exporter, block([1]))
        assert error.kind is ErrorKind.TIMED_OUT
        assert "shared_key" in error.advice


async def test_nobody_at_the_address_is_unreachable_and_names_it(tmp_path: Path):
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    async with exporting(tmp_path, port) as exporter:
        error = await error_of(exporter, block([1]))
        assert (error.kind, error.retry) == (ErrorKind.UNREACHABLE, Retry.LATER)
        assert f"127.0.0.1:{port}" in str(error)


async def test_a_restarted_peer_is_found_again(tmp_path: Path):
    async with running(tmp_path, shared_key="k") as first, exporting(tmp_path, first.port, shared_key="k") as exporter:
        port = first.port
        await send(exporter, block([1]))
        await first.receiver.stop(first.receiver._context.clock.monotonic_s() + PATIENCE_S)
        error = await error_of(exporter, block([2]))
        assert error.kind is ErrorKind.UNREACHABLE
        async with running(tmp_path, shared_key="k", listen=[f"127.0.0.1:{port}"]) as second:
            await send(exporter, block([3]))
            assert len(second.intake.arrivals) == 1


async def test_the_second_endpoint_takes_over_and_the_first_is_used_again_when_it_is_back(tmp_path: Path):
    async with running(tmp_path, shared_key="k", self_hostname="two") as second:
        async with running(tmp_path, shared_key="k", self_hostname="one") as first:
            port = first.port
            endpoints = [f"127.0.0.1:{port}", f"127.0.0.1:{second.port}"]
            exporter = await open_exporter(tmp_path, endpoint=endpoints, shared_key="k", failback_s=0.01)
            await send(exporter, block([1]))
            assert (len(first.intake.arrivals), len(second.intake.arrivals)) == (1, 0)
        await send_until_sent(exporter, block([2]))
        assert len(second.intake.arrivals) == 1
        async with running(tmp_path, shared_key="k", listen=[f"127.0.0.1:{port}"]) as again:
            await asyncio.sleep(0.02)
            await send(exporter, block([3]))
            await send(exporter, block([4]))
            assert len(again.intake.arrivals) == 2
            await until(lambda: not second.receiver._hub.connections)
            await exporter.close(0.0)


async def test_an_endpoint_that_accepts_but_never_acknowledges_is_left_for_the_next_one(tmp_path: Path):
    stuck = RecordingIntake()
    stuck.auto = False
    async with running(tmp_path, shared_key="k", intake=stuck) as first, running(tmp_path, shared_key="k") as second:
        endpoints = [f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"]
        async with exporting(tmp_path, endpoint=endpoints, shared_key="k", ack_timeout_s=0.1, failback_s=3600) as exporter:
            sent = block([1])
            assert (await error_of(exporter, sent)).kind is ErrorKind.TIMED_OUT
            await send(exporter, sent)
            assert len(second.intake.arrivals) == 1


async def test_of_several_errors_the_refused_key_is_told(tmp_path: Path):
    async with running(tmp_path, shared_key="right") as server:
        gone = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = gone.sockets[0].getsockname()[1]
        gone.close()
        endpoints = [f"127.0.0.1:{port}", f"127.0.0.1:{server.port}"]
        async with exporting(tmp_path, endpoint=endpoints, shared_key="wrong") as exporter:
            assert (await error_of(exporter, block([1]))).kind is ErrorKind.UNAUTHENTICATED


# --- TLS, users, Unix socket ------------------------------------------------------------------------


async def test_edge_to_central_over_mutual_tls_with_key_and_user(tmp_path: Path):
    certificates = Certificates(tmp_path)
    cert, key = certificates.issue("client", "edge.example")
    server_settings = {"tls": certificates.server(mutual=True), "shared_key": "k", "users": {"ada": "lovelace"}}
    tls = {"ca_file": certificates.ca_file, "cert_file": cert, "key_file": key}
    async with running(tmp_path, **server_settings) as server:
        client_settings = {"tls": tls, "shared_key": "k", "username": "ada", "password": "lovelace"}
        async with exporting(tmp_path, server.port, **client_settings) as exporter:
            big = block(range(5000), padding_bytes=200)
            await send(exporter, big)
            assert server.intake.arrivals[0].received == 5000


async def test_a_certificate_of_an_unknown_authority_is_refused_with_advice(tmp_path: Path):
    certificates = Certificates(tmp_path)
    async with running(tmp_path, tls=certificates.server(), shared_key="k") as server:
        async with exporting(tmp_path, server.port, tls={}, shared_key="k") as exporter:
            error = await error_of(exporter, block([1]))
            assert error.kind is ErrorKind.UNREACHABLE
            assert "tls.ca_file" in error.advice
        async with exporting(tmp_path, server.port, tls={"insecure_skip_verify": True}, shared_key="k") as exporter:
            await send(exporter, block([1]))


async def test_tls_to_a_port_without_tls_is_said(tmp_path: Path):
    async with running(tmp_path) as server, exporting(tmp_path, server.port, tls={"insecure_skip_verify": True}) as exporter:
        error = await error_of(exporter, block([1]))
        assert error.kind is ErrorKind.UNREACHABLE
        assert "TLS" in str(error)


async def test_no_tls_to_a_port_with_tls_is_said(tmp_path: Path):
    certificates = Certificates(tmp_path)
    async with running(tmp_path, tls=certificates.server()) as server, exporting(tmp_path, server.port, ack_timeout_s=2) as exporter:
        error = await error_of(exporter, block([1]))
        assert error.kind in (ErrorKind.UNREACHABLE, ErrorKind.UNAUTHENTICATED)


async def test_blocks_go_over_a_unix_socket(tmp_path: Path):
    path = tmp_path / "f.sock"
    async with running(tmp_path, listen=[], unix_path=path, shared_key="k") as server:
        async with exporting(tmp_path, endpoint=f"unix://{path}", shared_key="k") as exporter:
            await send(exporter, block([1]))
        assert len(server.intake.arrivals) == 1


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"endpoint": []}, "endpoint"),
        ({"endpoint": "host:0"}, "address"),
        ({"endpoint": "http://host"}, "address"),
        ({"endpoint": "host", "username": "ada"}, "go together"),
        ({"endpoint": "host", "username": "ada", "password": "x"}, "shared_key"),
        ({"endpoint": "host", "tls": {"cert_file": "c"}}, "go together"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_settings_that_cannot_work_are_refused_before_any_socket(settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        ForwardExporterConfig(**settings)


def test_endpoints_are_read_as_people_write_them():
    assert str(parse_endpoint("central.example:24225")) == "central.example:24225"
    assert str(parse_endpoint("central")) == "central:24224"
    assert str(parse_endpoint("[::1]:1")) == "[::1]:1"
    assert parse_endpoint("unix:///run/f.sock").path == "/run/f.sock"
