"""Dead letters from end to end: a refused row reaches its destination once that is mended; more letters than memory are shown."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.support.command import PATIENCE_S, ROOT, environment, running, until
from tests.support.command_bench import Bench, rows_in, wait_for_rows
from tests.support.dead_letters import answers, bury, dlq, rows_letter
from tests.support.forward import message_frame
from tests.support.strangers import connected

_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class Endpoint(ThreadingHTTPServer):
    """Takes OTLP by HTTP, or refuses all of it with 400."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses = True
        self.records = 0
        self.refusals = 0
        self.status = 400


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            self.server.refusals += 1
            self.send_response(self.server.status)
            if self.server.status == 429:
                self.send_header("Retry-After", "3600")
        else:
            request = ExportLogsServiceRequest.FromString(body)
            self.server.records += sum(len(scope.log_records) for one in request.resource_logs for scope in one.scope_logs)
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_rows_that_a_destination_refused_go_to_it_once_when_it_is_mended_and_to_no_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with endpoint() as destination:
        url = f"http://127.0.0.1:{destination.server_port}"
        bench.write(exporters=f"{{otlp_http: {{endpoint: '{url}', compression: none}}, file: {{directory: {tmp_path / 'a'}}}}}")
        with running(*bench.arguments):
            with connected(bench.port) as peer:
                peer.sendall(message_frame(1, chunk="c"))
                assert peer.recv(1000)
            wait_for_rows(tmp_path / "a", 1)
            (letter,) = until(lambda: answers(bench, "list"), "the refused row is kept")
            assert (letter["component"], letter["reason"], letter["records"], letter["rows"]) == ("otlp_http", "refused", 1, True)
            assert "400" in letter["detail"]
            assert destination.refusals >= 1
            destination.refuses = False
            result = dlq(bench, "retry", str(letter["id"]))
            assert result.returncode == 0, result.stderr
            until(lambda: destination.records, "the row arrives")
            until(lambda: not bench.groups()["otlp_http"]["held_records"], "it is acknowledged")
            assert answers(bench, "list") == []
            assert dlq(bench, "retry", str(letter["id"])).returncode == 1
        assert destination.records == 1
        assert len(rows_in(tmp_path / "a")) == 1


def test_a_stop_does_not_wait_for_a_destination_that_says_to_come_again_in_an_hour(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with endpoint() as destination:
        destination.status = 429
        url = f"http://127.0.0.1:{destination.server_port}"
        bench.write(exporters=f"{{otlp_http: {{endpoint: '{url}', compression: none}}}}", deadline_s=60)
        with running(*bench.arguments) as command:
            with connected(bench.port) as peer:
                peer.sendall(message_frame(1, chunk="c"))
                assert peer.recv(1000)
            until(lambda: destination.refusals, "it has said so")
            began_s = time.monotonic()
            command.signal(signal.SIGTERM)
            assert command.wait() == 0
        assert time.monotonic() - began_s < 30, "it waited for most of its deadline"
        assert bench.groups()["otlp_http"]["held_records"] == 1, "the row is lost"


def peak_kb(bench: Bench) -> int:
    """Return the memory that showing all letters of the stopped log takes."""
    command = [sys.executable, "-m", "emp_pipe", "dlq", "show", "--limit", "1000"]
    command += ["--data-dir", str(bench.data_dir), "--config", str(bench.file)]
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, *command], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    return int(result.stdout)


def test_showing_letters_of_a_stopped_log_takes_the_memory_of_one_however_many_there_are(tmp_path: Path) -> None:
    benches = {}
    for count in (2, 40):
        (tmp_path / str(count)).mkdir()
        benches[count] = Bench(tmp_path / str(count))
        bury(benches[count], *(rows_letter("file", *["x" * 100_000] * 40) for _ in range(count)))
    few, many = peak_kb(benches[2]), peak_kb(benches[40])
    assert many < few + 40_000, f"{many:,} KB for 160 MB of rows, {few:,} KB for 8 MB"
