"""One `emp-pipe run` for tests: its file, its ports, and what can be asked of it from outside."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from fluent import sender

from emp_pipe import control
from tests.support.command import free_port, run, until


class Bench:
    """A directory, ports, and a file for one process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.port = free_port()
        self.http_port = free_port()
        self.file = directory / "emp.yaml"
        self.write()

    def write(
        self,
        *,
        buffer: str = "sqlite",
        exporters: str = "{file: }",
        processors: str = "{}",
        receivers: str = "",
        more: str = "",
        deadline_s: float = 10,
    ) -> None:
        receivers = receivers or f'{{forward: {{listen: "127.0.0.1:{self.port}"}}}}'
        self.file.write_text(
            f'http: {{listen: "127.0.0.1:{self.http_port}"}}\nbuffer: {buffer}\nmachine_id: gpu-test\n'
            f"shutdown: {{deadline_s: {deadline_s}}}\nreceivers: {receivers}\nprocessors: {processors}\nexporters: {exporters}\n{more}\n"
        )

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("run", str(self.file), "--data-dir", str(self.data_dir))

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def groups(self) -> dict[str, dict[str, Any]]:
        """Return what `groups list` tells, of a running process without the cost of a command."""
        if (self.data_dir / control.NAME).exists():
            with contextlib.suppress(ConnectionError):
                return {row["group"]: row for row in map(json.loads, control.ask(self.data_dir, {"ask": "groups list"}))}
        result = run("groups", "list", "--json", "--data-dir", str(self.data_dir))
        assert result.returncode == 0, result.stderr
        return {row["group"]: row for row in map(json.loads, result.stdout.splitlines())}


def send(port: int, count: int, *, tag: str = "app.test", start: int = 0) -> None:
    """Log with the real client library."""
    client = sender.FluentSender(tag, host="127.0.0.1", port=port, timeout=20.0)
    for number in range(start, start + count):
        assert client.emit(None, {"message": f"record {number}", "level": "info", "job_id": f"job-{number}"}), client.last_error
    client.close()


def rows_in(directory: Path) -> list[dict[str, Any]]:
    """Return what the `file` exporter has written below a directory."""
    rows = []
    for path in sorted(directory.rglob("*.json*")):
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # its last line is being written
            if "message" in row:
                rows.append(row)
    return rows


def wait_for_rows(directory: Path, count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = until(
        lambda: (found := rows_in(directory)) and len(found) >= count and found, f"{count} rows in {directory}"
    )
    assert sorted(row["message"] for row in rows) == sorted({row["message"] for row in rows})
    return rows
