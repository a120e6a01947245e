"""Stands in for dockerd on a Unix socket, as strict as the real API: versioned paths, its parameters, frames, a chunked stream of events.

What it answers was compared with Docker Engine 20.10 (`/_ping`, list, inspect, logs, events). `fault` makes it misbehave: `close` (before
an answer), `hang`, `garbage`, `half` (an answer that ends half-way), `error`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

API_VERSION = "1.41"
_TARGET = re.compile(r"/v(\d+\.\d+)(/.*)")


def nano_text(time_unix_nano: int) -> str:
    """Return a time as the daemon writes it: RFC 3339 with nanoseconds, trailing zeros kept in logs."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_unix_nano // 10**9))
    return f"{whole}.{time_unix_nano % 10**9:09d}Z"


@dataclass
class FakeContainer:
    """A container of the stand-in."""

    name: str
    number: int
    image: str = "registry.example:5000/team/web:1.2"
    labels: dict[str, str] = field(default_factory=dict)
    driver: str = "local"
    log_path: str = ""
    tty: bool = False
    running: bool = True
    lines: list[tuple[int, int, bytes]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"{self.number:064x}"

    def summary(self) -> dict[str, Any]:
        state = "running" if self.running else "exited"
        return {"Id": self.id, "Names": [f"/{self.name}"], "Image": self.image, "Labels": self.labels, "State": state}

    def inspect(self) -> dict[str, Any]:
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Image": "sha256:" + "1" * 64,
            "LogPath": self.log_path,
            "State": {"Running": self.running, "Status": "running" if self.running else "exited"},
            "Config": {"Image": self.image, "Labels": self.labels, "Tty": self.tty},
            "HostConfig": {"LogConfig": {"Type": self.driver, "Config": {}}},
        }


class DockerDaemon:
    """A server with threads, so that it answers whatever the loop of a test does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers: dict[str, FakeContainer] = {}
        self.events: list[dict[str, Any]] = []
        self.fault = ""
        self.asked: list[str] = []
        self._changed = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._stopped = False
        self._listen()

    def _listen(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen(64)
        self._stopped = False
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    # what a test does

    def run(self, container: FakeContainer) -> FakeContainer:
        self.containers[container.id] = container
        return container

    def log(self, container: FakeContainer, *texts: str, stream: int = 1, at: int = 0, raw: bytes = b"") -> None:
        with self._changed:
            for text in texts:
                container.lines.append((at or time.time_ns(), stream, text.encode() + b"\n"))
            if raw:
                container.lines.append((at or time.time_ns(), stream, raw))
            self._changed.notify_all()

    def happen(self, container: FakeContainer, action: str, *, at: int = 0, **attributes: str) -> None:
        now = at or time.time_ns()
        more = {"image": container.image, "name": container.name, **container.labels, **attributes}
        actor = {"ID": container.id, "Attributes": more}
        said = {"status": action, "id": container.id, "from": container.image, "Type": "container", "Action": action, "Actor": actor}
        with self._changed:
            self.events.append({**said, "scope": "local", "time": now // 10**9, "timeNano": now})
            self._changed.notify_all()

    def end(self, container: FakeContainer) -> None:
        with self._changed:
            container.running = False
            self._changed.notify_all()

    def drop(self) -> None:
        """Close every connection in its middle."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._stopped = True
        with self._changed:
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.drop()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def start_again(self) -> None:
        self._listen()

    def asked_for(self, part: str) -> int:
        return sum(part in target for target in list(self.asked))

    # the server

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError), connection, connection.makefile("rb") as reader:
                first = reader.readline().decode("latin-1").split()
                headers = {}
                while (line := reader.readline()) not in (b"\r\n", b""):
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                if len(first) == 3:
                    self._answer(connection, first, headers)
        finally:
            self._connections.discard(connection)

    def _answer(self, connection: socket.socket, first: list[str], headers: dict[str, str]) -> None:
        method, target, protocol = first
        self.asked.append(target)
        if self.fault == "hang":
            while self.fault == "hang" and not self._stopped:
                time.sleep(0.02)
            return
        if self.fault == "close":
            return
        if self.fault == "garbage":
            connection.sendall(b"\x00\xff garbage \r\n\r\n" * 10)
            return
        if self.fault == "half":
            connection.sendall(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 100\r\n\r\n[{")
            return
        if self.fault == "error":
            self._json(connection, 500, {"message": "the daemon is not well"})
            return
        if protocol != "HTTP/1.1" or not headers.get("host") or method not in ("GET", "HEAD"):
            self._json(connection, 400, {"message": "bad request"})
            return
        url = urlsplit(target)
        if url.path == "/_ping":
            self._head(connection, 200, f"Api-Version: {API_VERSION}\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n")
            connection.sendall(b"OK")
            return
        found = _TARGET.fullmatch(url.path)
        if found is None:
            self._json(connection, 404, {"message": "page not found"})
            return
        if [int(part) for part in found[1].split(".")] > [int(part) for part in API_VERSION.split(".")]:
            message = f"client version {found[1]} is too new. Maximum supported API version is {API_VERSION}"
            self._json(connection, 400, {"message": message})
            return
        self._route(connection, found[2], {name: values[0] for name, values in parse_qs(url.query).items()})

    def _route(self, connection: socket.socket, path: str, query: dict[str, str]) -> None:
        parts = path.strip("/").split("/")
        if path == "/containers/json":
            shown = [one.summary() for one in self.containers.values() if one.running or query.get("all") == "1"]
            self._json(connection, 200, shown)
        elif path == "/events":
            self._events(connection, query)
        elif len(parts) == 3 and parts[0] == "containers" and parts[2] in ("json", "logs"):
            container = self.containers.get(parts[1])
            if container is None:
                self._json(connection, 404, {"message": f"No such container: {parts[1]}"})
            elif parts[2] == "json":
                self._json(connection, 200, container.inspect())
            else:
                self._logs(connection, container, query)
        else:
            self._json(connection, 404, {"message": "page not found"})

    @staticmethod
    def _head(connection: socket.socket, status: int, headers: str) -> None:
        connection.sendall(f"HTTP/1.1 {status} Whatever\r\nServer: Docker/20.10.24 (linux)\r\n{headers}\r\n".encode())

    def _json(self, connection: socket.socket, status: int, said: Any) -> None:
        body = json.dumps(said).encode() + b"\n"
        self._head(connection, status, f"Api-Version: {API_VERSION}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n")
        connection.sendall(body)

    @staticmethod
    def _chunk(connection: socket.socket, data: bytes) -> None:
        connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def _events(self, connection: socket.socket, query: dict[str, str]) -> None:
        filters = json.loads(query.get("filters", "{}"))
        seconds, _, nanos = query.get("since", "0").partition(".")
        since = int(seconds) * 10**9 + int(f"{nanos:0<9}" or 0) if "since" in query else time.time_ns()
        self._head(connection, 200, "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
        sent = 0
        while not self._stopped and not self.fault and connection.fileno() >= 0:
            for event in self.events[sent:]:
                sent += 1
                wanted = event["Type"] in filters.get("type", [event["Type"]]) and event["Action"] in filters.get(
                    "event", [event["Action"]]
                )
                if wanted and event["timeNano"] >= since:
                    self._chunk(connection, json.dumps(event).encode() + b"\n")
            with self._changed:
                self._changed.wait(0.05)
        if self.fault == "half":
            connection.sendall(b"ff\r\n{")

    def _logs(self, connection: socket.socket, container: FakeContainer, query: dict[str, str]) -> None:
        if query.get("stdout") != "1" and query.get("stderr") != "1":
            self._json(connection, 400, {"message": "Bad parameters: you must choose at least one stream"})
            return
        if container.driver not in ("json-file", "local", "journald"):
            self._json(connection, 501, {"message": "configured logging driver does not support reading"})
            return
        seconds, _, nanos = query.get("since", "0").partition(".")
        since = int(seconds) * 10**9 + int(f"{nanos:0<9}")
        self._head(connection, 200, "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n")
        sent = 0
        while not self._stopped and not self.fault:
            running = container.running
            for at, stream, text in container.lines[sent:]:
                sent += 1
                if at < since:
                    continue
                payload = (nano_text(at).encode() + b" " if query.get("timestamps") == "1" else b"") + text
                framed = payload if container.tty else bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload
                self._chunk(connection, framed)
            if not running or query.get("follow") != "1":
                connection.sendall(b"0\r\n\r\n")
                return
            with self._changed:
                self._changed.wait(0.05)


@contextlib.contextmanager
def docker_daemon(directory: Path) -> Iterator[DockerDaemon]:
    """Run a stand-in; its socket's path is short, for the system limits it."""
    daemon = DockerDaemon(Path(f"/tmp/emp-docker-{os.getpid()}-{abs(hash(str(directory))) % 10**6}.sock"))
    try:
        yield daemon
    finally:
        daemon.stop()
