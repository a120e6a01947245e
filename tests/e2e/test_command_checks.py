"""`emp-pipe` with checks: a change is one event in its destination, over a SIGKILL too, and each setting does what it says."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, rows_in
from tests.support.host_processes import comfyui
from tests.support.reading import of_name, points_of_line


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(
            {"system": {}, "devices": []} if self.path == "/system_stats" else {"queue_running": [], "queue_pending": [[1, "a"]]}
        ).encode()
        self.send_response(200 if self.headers.get("X-Key", "k3y") == "k3y" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def service(port: int) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def write(bench: Bench, *checks: dict[str, Any], **settings: Any) -> None:
    given = {"interval_s": 0.1, "find_comfyui": False, "checks": [{"down_after": 1, **check} for check in checks], **settings}
    bench.write(receivers=json.dumps({"checks": given}))


def events(bench: Bench) -> list[tuple[str, str]]:
    """Return the events, each once: a file that was written as the process was killed is written again, with the same time."""
    told = {(row["timestamp"], row["check.name"], row["event_type"]): None for row in rows_in(bench.data_dir) if "check.name" in row}
    return [(name, event_type) for _, name, event_type in told]


def points(bench: Bench, name: str, **attributes: Any) -> list[Any]:
    found = []
    for path in sorted(bench.data_dir.rglob("metrics*.json*")):
        for line in path.read_bytes().splitlines():
            try:
                found += points_of_line(json.loads(line))
            except ValueError:
                continue
    return of_name(found, name, **attributes)


def test_a_change_is_one_event_and_a_sigkill_repeats_none(bench: Bench) -> None:
    port = free_port()
    write(bench, {"name": "api", "http": f"http://127.0.0.1:{port}/"})
    with service(port), running(*bench.arguments) as process:
        until(lambda: events(bench) == [("api", "service_up")], "an event")
        assert until(lambda: points(bench, "check.duration", check__name="api"), "a duration")[0].unit == "s"
        process.signal(signal.SIGKILL)
        process.wait()
    with service(port), running(*bench.arguments):
        before = len(points(bench, "check.up"))
        until(lambda: len(points(bench, "check.up")) > before + 3, "further looks")
        assert events(bench) == [("api", "service_up")]
    with running(*bench.arguments):
        until(lambda: events(bench) == [("api", "service_up"), ("api", "service_down")], "the change that nobody saw")


def test_every_kind_is_checked_by_one_command(bench: Bench, tmp_path: Path) -> None:
    port = free_port()
    write(
        bench,
        {"name": "web", "http": f"http://127.0.0.1:{port}/"},
        {"name": "port", "tcp": f"127.0.0.1:{port}"},
        {"name": "generator", "process": "main[.]py .*--port 18191"},
        {"name": "comfy", "comfyui": f"http://127.0.0.1:{port}"},
        {"name": "queue", "redis": f"redis://127.0.0.1:{free_port()}"},
    )
    with service(port), comfyui(tmp_path, 18_191), running(*bench.arguments):
        until(lambda: len(events(bench)) == 5, "an event of each")
        waiting = until(lambda: points(bench, "comfyui.queue.depth", comfyui__queue__state="pending"), "a queue")
        assert waiting[0].value == 1
    assert set(events(bench)) == {
        *((name, "service_up") for name in ("web", "port", "generator", "comfy")),
        ("queue", "service_down"),
    }


def test_with_no_setting_the_comfyui_of_this_machine_is_found(bench: Bench, tmp_path: Path) -> None:
    port = free_port()
    bench.write(receivers="{checks: {interval_s: 0.1}}")
    with service(port), comfyui(tmp_path, port), running(*bench.arguments):
        until(lambda: (f"comfyui-{port}", "service_up") in events(bench), "the ComfyUI")


def test_each_setting_does_what_it_says(bench: Bench) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    write(
        bench,
        {"name": "status", "http": url, "expect_status": [204]},
        {"name": "body", "http": url, "expect_body": "no such text"},
        {"name": "headers", "http": url, "headers": {"X-Key": "wrong"}},
        {"name": "service", "http": url, "service": "hub-api"},
        {"name": "slow", "tcp": "127.0.0.1:1", "down_after": 3, "timeout_s": 1},
    )
    with service(port), running(*bench.arguments):
        until(lambda: len(events(bench)) == 5, "an event of each")
    told = {row["check.name"]: row for row in rows_in(bench.data_dir)}
    assert {name: row.get("error_type") for name, row in told.items()} == {
        "status": "status",
        "body": "body",
        "headers": "status",
        "service": None,
        "slow": "unreachable",
    }
    assert told["service"]["service.name"] == "hub-api"
    assert told["status"]["service.name"] == "status"
    early = points(bench, "check.up", check__name="slow")
    assert len([point for point in early if point.time_unix_nano / 1e9 < _unix_s(told["slow"]["timestamp"])]) >= 2


def _unix_s(text: str) -> float:
    return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC).timestamp()


def test_its_settings_are_shown_without_secrets(bench: Bench) -> None:
    write(bench, {"name": "queue", "redis": "redis://10.0.0.5:6379", "password": "hunter2", "up_after": 2})
    shown = run(*bench.arguments, "--print-config")
    assert shown.returncode == 0, shown.stderr
    assert "hunter2" not in shown.stdout
    for text in ("name: queue", "redis://10.0.0.5:6379", "up_after: 2", "find_comfyui: false", "timeout_s: 5"):
        assert text in shown.stdout


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"name": "x"}, "give one of http, tcp, process, comfyui, redis"),
        ({"name": "x", "tcp": "h:1", "http": "http://h"}, "not http and tcp"),
        ({"name": "x", "tcp": "h"}, "is not host:port"),
        ({"name": "x", "http": "ftp://h"}, "must be an http"),
        ({"name": "x", "http": "http://u:p@h"}, "must not hold a password"),
        ({"name": "x", "redis": "redis://:p@h"}, "must not hold a password"),
        ({"name": "x", "redis": "http://h"}, "must be redis://"),
        ({"name": "x", "process": "("}, "is no regular expression"),
        ({"name": "x", "tcp": "h:1", "retries": 3}, "retries"),
    ],
)
def test_a_check_that_cannot_be_is_refused_with_what_to_do(bench: Bench, check: dict[str, Any], said: str) -> None:
    write(bench, check)
    refused = run(*bench.arguments, "--print-config")
    assert refused.returncode != 0
    assert said in refused.stderr


def test_two_checks_of_one_name_are_refused(bench: Bench) -> None:
    write(bench, {"name": "x", "tcp": "h:1"}, {"name": "x", "tcp": "h:2"})
    assert "two checks are called x" in run(*bench.arguments, "--print-config").stderr
