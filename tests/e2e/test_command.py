"""The real command while it runs: records come through, it stops in order, and it does not start where it must not."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from tests.support.acked_sender import AckedSender
from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, rows_in, send, wait_for_rows


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_edge_with_nothing_set_keeps_records_in_files_and_says_where(tmp_path: Path) -> None:
    port, http_port = free_port(), free_port()
    arguments = ("edge", "--data-dir", str(tmp_path), "--set", f"receivers.forward.listen=127.0.0.1:{port}")
    with running(*arguments, PORT=str(http_port), MACHINE_ID="gpu-7f3a", WORKER_ID="worker-001") as edge:
        said = "\n".join(edge.messages())
        assert f"receives: forward on 127.0.0.1:{port}" in said
        assert f"sends to: file in {tmp_path}" in said
        assert "emp-pipe" in said
        assert "edge on gpu-7f3a" in said
        send(port, 3)
        rows = wait_for_rows(tmp_path, 3)
        assert {row["message"] for row in rows} == {"record 0", "record 1", "record 2"}
        assert {(row["machine_id"], row["worker_id"], row["job_id"]) for row in rows[:1]} == {("gpu-7f3a", "worker-001", "job-0")}
        edge.signal(signal.SIGTERM)
        assert edge.wait() == 0


def test_its_own_lines_are_json_where_no_terminal_is(bench: Bench) -> None:
    with running(*bench.arguments) as process:
        for line in process.lines:
            assert {"timestamp", "level", "message", "machine_id"} <= set(json.loads(line))


def test_an_edge_sends_to_central_over_tls_with_a_shared_key(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    secure, plain, edge_port = free_port(), free_port(), free_port()
    central_variables = {
        "FLUENTD_SHARED_KEY": "hunter2",
        "EMP_FORWARD_LISTEN": f"127.0.0.1:{secure}",
        "EMP_TLS_CERT_FILE": str(tmp_path / "cert.pem"),
        "EMP_TLS_KEY_FILE": str(tmp_path / "key.pem"),
        "PORT": str(free_port()),
        "MACHINE_ID": "railway-central",
    }
    edge_variables = {
        "FLUENTD_HOST": "127.0.0.1",
        "FLUENTD_PORT": str(secure),
        "FLUENTD_SECURE": "true",
        "FLUENTD_SHARED_KEY": "hunter2",
        "EMP_TLS_CA_FILE": str(tmp_path / "ca.pem"),
        "PORT": str(free_port()),
        "MACHINE_ID": "gpu-7f3a",
    }
    central = ("central", "--data-dir", str(tmp_path / "central"), "--set", f"receivers.forward.listen=127.0.0.1:{plain}")
    edge = ("edge", "--data-dir", str(tmp_path / "edge"), "--set", f"receivers.forward.listen=127.0.0.1:{edge_port}")
    with running(*central, **central_variables) as at_central, running(*edge, **edge_variables) as at_edge:
        send(edge_port, 50)
        rows = wait_for_rows(tmp_path / "central", 50)
        assert {row["machine_id"] for row in rows} == {"gpu-7f3a"}
        at_edge.signal(signal.SIGTERM)
        assert at_edge.wait() == 0
        at_central.signal(signal.SIGTERM)
        assert at_central.wait() == 0
        assert "hunter2" not in "\n".join(at_edge.lines + at_central.lines)
    assert len(rows_in(tmp_path / "central")) == 50


def test_a_wrong_shared_key_is_said_on_both_sides_and_the_records_stay_at_the_edge(bench: Bench, tmp_path: Path) -> None:
    secure = free_port()
    bench.write(exporters=f'{{forward/central: {{endpoint: "127.0.0.1:{secure}", shared_key: wrong}}}}')
    (tmp_path / "central").mkdir()
    other = Bench(tmp_path / "central")
    other.write(receivers=f'{{forward/secure: {{listen: "127.0.0.1:{secure}", shared_key: right}}}}')
    with running(*other.arguments) as central, running(*bench.arguments) as edge:
        send(bench.port, 5)
        central.wait_for("key")
        edge.wait_for("shared_key")
        held = until(
            lambda: (found := bench.groups()["forward/central"])["held_records"] == 5 and found["error"] and found, "5 held records"
        )
        assert "shared_key" in held["error"]


def test_sigterm_delivers_what_is_in_the_buffer_and_exits_with_0(bench: Bench) -> None:
    with closed_gate() as gate:
        bench.write(exporters=f'{{otlp_http: {{endpoint: "{gate.url}", max_concurrency: 1}}}}')
        with running(*bench.arguments) as process:
            for start in (0, 100):  # one request waits at the gate, the rest is still in the buffer
                send(bench.port, 100, start=start)
                until(lambda sent=start + 100: bench.groups()["otlp_http"]["held_records"] == sent, "all records held")
            process.signal(signal.SIGTERM)
            process.wait_for("SIGTERM: stopping")
            gate.opened.set()
            assert process.wait() == 0
            assert process.messages()[-1] == "stopped"
    assert bench.groups()["otlp_http"]["held_records"] == 0
    assert gate.requests > 1


class Gate:
    """An HTTP endpoint that answers nobody until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.requests = 0
        self.url = ""


@contextmanager
def closed_gate() -> Iterator[Gate]:
    gate = Gate()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            gate.opened.wait(30)
            time.sleep(0.5)  # so that the second request begins after all receivers have stopped
            gate.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    gate.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield gate
    gate.opened.set()
    server.shutdown()
    server.server_close()


def test_sigterm_ends_within_the_deadline_when_the_destination_is_away_and_the_records_stay(bench: Bench) -> None:
    bench.write(exporters=f'{{otlp_http: {{endpoint: "http://127.0.0.1:{free_port()}"}}}}')
    with running(*bench.arguments) as process:
        send(bench.port, 20)
        until(lambda: bench.groups()["otlp_http"]["held_records"] == 20, "20 held records")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        process.wait_for("otlp_http: 20 records stay in the buffer for the next start")
    assert bench.groups()["otlp_http"]["held_records"] == 20


def test_sigterm_ends_within_the_deadline_when_the_destination_does_not_answer_and_the_records_stay(bench: Bench) -> None:
    with silent_endpoint() as url:
        bench.write(exporters=f'{{otlp_http: {{endpoint: "{url}"}}}}', deadline_s=2)
        with running(*bench.arguments) as process:
            send(bench.port, 20)
            until(lambda: bench.groups()["otlp_http"]["in_flight_blocks"], "a request under way")
            began_s = time.monotonic()
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
            assert time.monotonic() - began_s < 20  # far below what an attempt may take, far above the deadline
    assert bench.groups()["otlp_http"]["held_records"] == 20


def test_a_second_signal_stops_at_once(bench: Bench) -> None:
    with silent_endpoint() as url:
        bench.write(exporters=f'{{otlp_http: {{endpoint: "{url}"}}}}', deadline_s=600)
        with running(*bench.arguments) as process:
            send(bench.port, 20)
            until(lambda: bench.groups()["otlp_http"]["in_flight_blocks"], "a request under way")
            process.signal(signal.SIGINT)
            process.wait_for("SIGINT: stopping")
            process.signal(signal.SIGINT)
            assert process.wait() == 0
            process.wait_for("stopped at once")
    assert bench.groups()["otlp_http"]["held_records"] == 20


@contextmanager
def silent_endpoint() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for each in held:
            each.close()


async def test_ctrl_c_while_records_come_in_loses_none_that_was_acknowledged(bench: Bench) -> None:
    client = AckedSender(bench.port)
    sending = asyncio.ensure_future(client.run())
    for _ in range(2):
        with running(*bench.arguments) as process:
            await asyncio.wait_for(client.wait_acked(len(client.acked) + 200), 30)
            process.signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait) == 0
    acked = set(client.acked)
    sending.cancel()
    await asyncio.wait([sending])
    numbers = [row["sequence"] for row in rows_in(bench.data_dir)]
    assert acked <= set(numbers)
    assert bench.groups()["file"]["held_records"] == 0


def test_a_port_in_use_is_said_with_address_and_setting(bench: Bench) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", bench.http_port))
        other.listen()
        result = run(*bench.arguments)
        assert result.returncode == 2
        assert f"http.listen: another process listens on 127.0.0.1:{bench.http_port}" in result.stderr
    with socket.socket() as other:
        other.bind(("127.0.0.1", bench.port))
        other.listen()
        result = run(*bench.arguments)
        assert result.returncode == 2
        assert f"127.0.0.1:{bench.port}" in result.stderr
        assert "forward" in result.stderr
        assert "Traceback" not in result.stderr


def test_two_processes_do_not_share_a_data_directory(bench: Bench, tmp_path: Path) -> None:
    with running(*bench.arguments) as first:
        (tmp_path / "second").mkdir()
        second = Bench(tmp_path / "second")
        result = run("run", str(second.file), "--data-dir", str(bench.data_dir))
        assert result.returncode == 1
        assert f"another emp-pipe uses this data directory (process {first.process.pid})" in result.stderr
        assert bench.get("/readyz")[0] == 200


def test_both_roles_run_in_one_process(tmp_path: Path) -> None:
    port, secure, http_port = free_port(), free_port(), free_port()
    file = tmp_path / "both.yaml"
    file.write_text(
        f'roles: [edge, central]\nhttp: {{listen: "127.0.0.1:{http_port}"}}\n'
        f'receivers: {{forward: {{listen: "127.0.0.1:{port}"}}, forward/secure: {{listen: "127.0.0.1:{secure}", shared_key: k}}}}\n'
    )
    with running("run", str(file), "--data-dir", str(tmp_path), FLUENTD_SHARED_KEY="k"):
        send(port, 4)
        wait_for_rows(tmp_path, 4)


@pytest.mark.parametrize("buffer", ["sqlite", "memory"])
@pytest.mark.parametrize(
    ("exporter", "settings", "outcome"),
    [
        ("noop", "", "acked"),
        ("stdout", "", "acked"),
        ("file", "{max_files: 2}", "acked"),
        ("error", "{kind: refused}", "dead"),
        ("otlp_http", '{endpoint: "http://127.0.0.1:1"}', ""),
        ("otlp_grpc", '{endpoint: "http://127.0.0.1:1"}', ""),
        ("forward", '{endpoint: "127.0.0.1:1"}', ""),
    ],
)
def test_every_exporter_runs_over_every_buffer_and_the_books_balance(
    bench: Bench, buffer: str, exporter: str, settings: str, outcome: str
) -> None:
    bench.write(buffer=buffer, exporters=f"{{{exporter}: {settings}}}")
    with running(*bench.arguments) as process:
        send(bench.port, 10)
        ended = {"topic": "logs", "group": exporter}
        if outcome:
            until(lambda: bench.metric("emp_pipe_group_records_total", outcome=outcome, **ended) == 10, f"10 {outcome} records")
        until(lambda: bench.metric("emp_pipe_group_records_total", outcome="appended", **ended) == 10, "10 appended records")
        assert bench.metric("emp_pipe_group_held_records", **ended) == (0 if outcome else 10)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
