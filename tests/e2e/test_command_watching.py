"""The real command, looked at while it runs and after it has stopped: tap, groups, dead letters, health, metrics."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fluent import sender

from tests.support.command import ROOT, environment, free_port, run, running, until
from tests.support.command_bench import Bench, send, wait_for_rows


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("component", ["forward", "enrich", "file"])
def test_tap_shows_the_rows_that_pass_a_component(bench: Bench, component: str) -> None:
    bench.write(processors="{enrich: {attributes: {region: eu}}}")
    with running(*bench.arguments):
        tap = subprocess.Popen(
            [sys.executable, "-m", "emp_pipe", "tap", component, "--data-dir", str(bench.data_dir), "--limit", "1"],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tap.stderr is not None
        assert f"rows that pass {component} follow" in tap.stderr.readline()
        send(bench.port, 1)
        output, errors = tap.communicate(timeout=30)
        assert tap.returncode == 0, errors
        row = json.loads(output.splitlines()[0])
        assert row["message"] == "record 0"
        assert ("region" in row) is (component != "forward")


def test_tap_of_an_unknown_component_names_those_that_there_are(bench: Bench) -> None:
    with running(*bench.arguments):
        result = run("tap", "nonsense", "--data-dir", str(bench.data_dir))
    assert result.returncode == 1
    assert "nonsense: there is no such component here; there are forward, file" in result.stderr


def test_tap_without_a_process_says_so(bench: Bench) -> None:
    result = run("tap", "forward", "--data-dir", str(bench.data_dir))
    assert result.returncode == 1
    assert f"no emp-pipe runs on {bench.data_dir}" in result.stderr


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_groups_can_be_listed_and_reset(bench: Bench, stopped: bool) -> None:
    bench.write(exporters=f'{{otlp_http: {{endpoint: "http://127.0.0.1:{free_port()}"}}}}')
    with running(*bench.arguments) as process:
        send(bench.port, 20)
        until(lambda: bench.groups()["otlp_http"]["held_records"] == 20, "20 held records")
        if stopped:
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        result = run("groups", "list", "--json", "--data-dir", str(bench.data_dir))
        listed = json.loads(result.stdout)
        assert "otlp_http" in run("groups", "list", "--data-dir", str(bench.data_dir)).stdout
        assert listed["required"] is True
        assert listed["held_records"] == 20
        result = run("groups", "reset", "otlp_http", "--to", "newest", "--data-dir", str(bench.data_dir))
        assert result.returncode == 0, result.stderr
        until(lambda: bench.groups()["otlp_http"]["held_records"] == 0, "nothing held after the reset")
        if not stopped:
            books = {"topic": "logs", "group": "otlp_http"}
            assert bench.metric("emp_pipe_group_records_total", outcome="dropped", reason="group_reset", **books) == 20


def test_a_group_that_an_exporter_reads_is_not_dropped_and_one_of_a_stopped_process_is(bench: Bench) -> None:
    with running(*bench.arguments) as process:
        result = run("groups", "drop", "file", "--data-dir", str(bench.data_dir))
        assert result.returncode == 1
        assert "an exporter of this configuration reads this group" in result.stderr
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert run("groups", "drop", "file", "--data-dir", str(bench.data_dir)).returncode == 0
    assert bench.groups() == {}


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_an_unknown_group_is_refused_with_those_that_there_are(bench: Bench, stopped: bool) -> None:
    with running(*bench.arguments) as process:
        if stopped:
            process.signal(signal.SIGTERM)
            process.wait()
        for command in ("reset", "drop"):
            result = run("groups", command, "nonsense", "--data-dir", str(bench.data_dir))
            assert result.returncode == 1
            assert "nonsense: there is no such group; there are file" in result.stderr


def test_bytes_that_are_no_forward_are_listed_as_dead_letters(bench: Bench) -> None:
    with running(*bench.arguments):
        with socket.create_connection(("127.0.0.1", bench.port), 20) as connection:
            connection.sendall(b"\xc1 nonsense")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass

        def letters() -> list[dict[str, Any]]:
            return [json.loads(line) for line in run("dlq", "list", "--data-dir", str(bench.data_dir)).stdout.splitlines()]

        (letter,) = until(letters, "a dead letter")
    assert letter["component"] == "forward"
    assert "nonsense" in letter["payload_start"]


def test_health_readiness_and_metrics_tell_the_state(bench: Bench) -> None:
    with running(*bench.arguments):
        send(bench.port, 7)
        wait_for_rows(bench.data_dir, 7)
        assert bench.get("/healthz") == (200, "ok\n")
        status, text = bench.get("/readyz")
        state = json.loads(text)
        assert status == 200
        assert state["ready"] is True
        assert state["machine_id"] == "gpu-test"
        assert {each["id"] for each in state["components"]} == {"forward", "file"}
        assert state["groups"][0]["group"] == "file"
        assert state["durability"]
        books = {outcome: bench.metric("emp_pipe_receiver_records_total", component="forward", outcome=outcome) for outcome in OUTCOMES}
        assert books == {"received": 7, "appended": 7, "invalid": 0, "refused": 0, "dropped": 0, "duplicate": 0}
        until(lambda: bench.metric("emp_pipe_group_records_total", topic="logs", group="file", outcome="acked") == 7, "7 acked records")
        until(lambda: bench.metric("emp_pipe_forward_received_records_total", component="forward") == 7, "7 records in")
        assert bench.metric("emp_pipe_forward_received_bytes_total", component="forward") > 7 * 50
        assert bench.metric("emp_pipe_exporter_sent_bytes_total", component="file", signal="logs") > 0
        metrics = bench.get("/metrics")[1]
        for name in NAMES:
            assert f"\n{name}" in metrics, name


OUTCOMES = ("received", "appended", "invalid", "refused", "dropped", "duplicate")
NAMES = (
    "emp_pipe_buffer_held_bytes",
    "emp_pipe_buffer_limit_bytes",
    "emp_pipe_buffer_oldest_age_seconds",
    "emp_pipe_group_lag_records",
    "emp_pipe_group_lag_bytes",
    "emp_pipe_group_lag_seconds",
    "emp_pipe_group_held_records",
    "emp_pipe_event_loop_delay_seconds_bucket",
    "emp_pipe_exporter_sent_records_total",
    "emp_pipe_exporter_sent_bytes_total",
    "emp_pipe_exporter_attempts_total",
    "emp_pipe_exporter_in_flight_requests",
    "emp_pipe_exporter_concurrency_limit_requests",
    "emp_pipe_exporter_breaker_open_ratio",
    "emp_pipe_exporter_lag_records",
    "emp_pipe_exporter_lag_seconds",
    "emp_pipe_buffer_dead_bytes",
    "emp_pipe_buffer_admitting",
    "emp_pipe_receiver_records_total",
    "emp_pipe_group_records_total",
    "emp_pipe_forward_received_records_total",
    "emp_pipe_forward_received_bytes_total",
    "emp_pipe_forward_received_invalid_records_total",
    "emp_pipe_forward_received_acks_total",
    "emp_pipe_forward_open_connections",
    "emp_pipe_forward_unacked_bytes",
    "emp_pipe_forward_clock_ahead_seconds",
)


def test_a_full_buffer_is_said_by_readiness(bench: Bench) -> None:
    bench.write(
        buffer="{type: sqlite, max_bytes: 200000}",
        exporters=f'{{otlp_http: {{endpoint: "http://127.0.0.1:{free_port()}", compression: none}}}}',
    )
    with running(*bench.arguments):
        client = sender.FluentSender("app", host="127.0.0.1", port=bench.port, timeout=1.0)

        def full() -> bool:
            client.emit(None, {"message": os.urandom(8192).hex()})
            return bench.get("/readyz")[0] == 503

        until(full, "a full buffer")
        assert json.loads(bench.get("/readyz")[1])["reason"]
        client.close()


def test_own_metrics_reach_their_endpoint_and_do_not_pass_the_pipeline(bench: Bench) -> None:
    bodies: list[dict[str, Any]] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bench.write(more=f'self_metrics: {{otlp_endpoint: "http://127.0.0.1:{server.server_port}", interval_s: 0.1}}')
    with running(*bench.arguments):
        until(lambda: len(bodies) >= 2, "two exports of own metrics")
        names = {m["name"] for m in bodies[-1]["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
        assert "emp_pipe_buffer_held_bytes" in names
        assert bench.metric("emp_pipe_receiver_records_total", component="forward", outcome="received") == 0
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("grpc_listen", ["off", "127.0.0.1:0"])
def test_an_idle_edge_imports_no_heavy_library(grpc_listen: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "emp_pipe", "edge"]
    variables = environment(
        FLUENTD_HOST="127.0.0.1",
        FLUENTD_SHARED_KEY="k",
        PORT=str(free_port()),
        EMP_DATA_DIR=str(tmp_path),
        EMP_LOG_LEVEL="info",
        EMP_OTLP_GRPC_LISTEN=grpc_listen,
        EMP_OTLP_HTTP_LISTEN="127.0.0.1:0",
    )
    with subprocess.Popen(command, env=variables, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        imported = set()
        for line in process.stderr:
            if line.startswith("import time:"):
                imported.add(line.rsplit("|", 1)[1].strip())
            elif "health: " in line or "cannot" in line or "another process" in line:
                break
        process.kill()
    packages = {name.partition(".")[0] for name in imported}
    assert {"emp_pipe", "asyncio", "pydantic"} <= packages  # the list is read right
    heavy = {"aiohttp", "pyarrow", "numpy", "pandas", "grpc", "google", "opentelemetry", "yaml", "rich", "cryptography"}
    assert not packages & heavy
    assert "emp_pipe.exporters.otlp_http" not in imported


def test_log_lines_say_that_receivers_wait_while_the_buffer_is_full(bench: Bench) -> None:
    bench.write(buffer="{type: sqlite, max_bytes: 1}")
    with running(*bench.arguments) as command:
        assert "the buffer holds" in command.wait_for("receivers wait and acknowledge nothing")
