"""The real command with the OTLP exporters: each setting at work, and what is said when a destination goes."""

from __future__ import annotations

import json
import signal
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, send
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_grpc_endpoint import GrpcAnswer, OtlpGrpcEndpoint
from tests.support.otlp_post import post
from tests.support.otlp_samples import rich_metric, rich_spans
from tests.support.otlp_strict import StrictEndpoint, in_a_thread


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def secure_endpoint(protocol: str, directory: Path) -> Any:
    """Return an endpoint that asks for a certificate, a token and a header, and put the files of its peer into a directory."""
    authority = trustme.CA()
    server, client = authority.issue_cert("otlp.example"), authority.issue_cert("edge")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    client.private_key_pem.write_to_path(str(directory / "client.key"))
    (directory / "client.pem").write_bytes(b"".join(one.bytes() for one in client.cert_chain_pems))
    (directory / "token").write_text("t0ken\n")
    asked: dict[str, Any] = {"token": "t0ken", "required_headers": {"x-team": "gpu"}}
    if protocol == "grpc":
        pair = (server.private_key_pem.bytes(), b"".join(one.bytes() for one in server.cert_chain_pems))
        return OtlpGrpcEndpoint(credentials=grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), True), **asked)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    return OtlpEndpoint(tls=context, **asked)


def arrived(endpoint: StrictEndpoint[Any]) -> tuple[int, int, int]:
    logs, traces, metrics = (len(endpoint.records(signal)) for signal in ("logs", "traces", "metrics"))
    return logs, traces, metrics


PROTOCOL_SETTINGS = {
    "http": "compression: zstd",
    "grpc": "compression: gzip, connections: 2, keepalive_s: 20",
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_all_three_signals_leave_over_mutual_tls_with_token_headers_and_every_other_setting(bench: Bench, protocol: str) -> None:
    otlp_port = free_port()
    files = bench.directory
    with in_a_thread(secure_endpoint(protocol, files)) as endpoint:
        tls = f"{{ca_file: {files}/ca.pem, cert_file: {files}/client.pem, key_file: {files}/client.key, server_name: otlp.example}}"
        settings = (
            f"endpoint: '{endpoint.url}', tls: {tls}, token: {{file: {files}/token}}, headers: {{x-team: gpu}}, max_request_bytes: 100000,"
            f" max_concurrency: 2, timeout_s: 20, retry_initial_s: 0.1, retry_max_s: 1, {PROTOCOL_SETTINGS[protocol]}"
        )
        bench.write(
            receivers=f'{{forward: {{listen: "127.0.0.1:{bench.port}"}}, otlp_http: {{listen: "127.0.0.1:{otlp_port}"}}}}',
            exporters=f"{{otlp_{protocol}/secure: {{{settings}}}}}",
        )
        assert run("validate", *bench.arguments[1:2]).returncode == 0
        with running(*bench.arguments) as process:
            send(bench.port, 20)
            post(otlp_port, rich_spans())
            post(otlp_port, rich_metric("histogram"))
            until(lambda: arrived(endpoint) == (20, 1, 1), "all of it")
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        assert not endpoint.violations


def test_a_grpc_destination_that_goes_away_and_comes_back_gets_everything(bench: Bench) -> None:
    port = free_port()
    bench.write(exporters=f'{{otlp_grpc: {{endpoint: "http://127.0.0.1:{port}", retry_initial_s: 0.05, retry_max_s: 0.2}}}}')
    with running(*bench.arguments) as process:
        with in_a_thread(OtlpGrpcEndpoint(port=port)) as first:
            send(bench.port, 10)
            until(lambda: len(first.records("logs")) == 10, "10 records")
            until(lambda: bench.groups()["otlp_grpc"]["held_records"] == 0, "nothing held")
            first.always(GrpcAnswer(never=True))
            send(bench.port, 10, start=10)
            until(lambda: first.in_flight, "a call under way, whose end by the server grpcio has words of its own for")
        process.wait_for("otlp_grpc: no connection to 127.0.0.1:")
        until(lambda: bench.groups()["otlp_grpc"]["held_records"] == 10, "10 held records")
        with in_a_thread(OtlpGrpcEndpoint(port=port)) as second:
            until(lambda: len(second.records("logs")) >= 10, "the other 10")
            until(lambda: bench.groups()["otlp_grpc"]["held_records"] == 0, "nothing held")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_certificate_that_is_not_trusted_is_said_in_our_own_lines_and_grpcs_are_kept_away(bench: Bench) -> None:
    with in_a_thread(secure_endpoint("grpc", bench.directory)) as endpoint:
        bench.write(exporters=f'{{otlp_grpc: {{endpoint: "{endpoint.url}", retry_initial_s: 0.05, retry_max_s: 0.2}}}}')
        with running(*bench.arguments) as process:
            send(bench.port, 10)
            assert "check the destination's certificate" in process.wait_for("otlp_grpc: no connection to")
            until(lambda: bench.metric("emp_pipe_exporter_attempts_total", component="otlp_grpc") > 2, "three attempts")
            for line in process.lines:
                json.loads(line)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('{endpoint: "http://x:4318/v1/logs"}', "no path"),
        ('{endpoint: "x:4317"}', "http:// or https://"),
        ('{endpoint: "http://x", compresion: gzip}', "compression"),
        ("{preset: dash0}", "needs a `token`"),
    ],
)
def test_settings_of_the_grpc_exporter_that_cannot_work_are_said_before_the_start(bench: Bench, settings: str, said: str) -> None:
    bench.write(exporters=f"{{otlp_grpc: {settings}}}")
    result = run("validate", str(bench.file))
    assert result.returncode == 2
    assert said in result.stderr


def test_dash0_by_grpc_can_be_asked_for(bench: Bench) -> None:
    bench.write(exporters="{otlp_grpc/dash0: {preset: dash0, token: {env: KEY}, dataset: prod-eu, region: us-west-2, compression: gzip}}")
    result = run("run", str(bench.file), "--data-dir", str(bench.data_dir), "--print-config", KEY="t")
    assert result.returncode == 0
    assert "otlp_grpc/dash0" in result.stdout
