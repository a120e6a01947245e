"""Starts a real redis-server for tests: on a free loopback port, in a temporary directory of its own, every wait bounded.

The program is the system's, else the one that `tools/redis.sh` saw to; `needs_redis` marks the tests that say why they were not run where
there is neither. A server is one process that the test started: nothing else is ever signalled. All of it is blocking (a start takes
some 20 ms), so that tests of the command and tests on an event loop use the same.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType

import pytest
import trustme

from tests.support.command import free_port

PATIENCE_S = 30.0
_READY = b"Ready to accept connections"


@cache
def program() -> str | None:
    """Return the path of a redis-server: the system's, else the one that `tools/redis.sh` put beside this Python, else None."""
    beside = Path(sys.executable).parent / "redis-server"
    return shutil.which("redis-server") or (str(beside) if beside.exists() else None)


def _program() -> str:
    found = program()
    assert found is not None, "no redis-server: mark the test with `needs_redis`"
    return found


@cache
def version() -> tuple[int, ...]:
    """Return the version of the program, such as (7, 0, 15)."""
    text = subprocess.run([_program(), "--version"], capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    return tuple(int(part) for part in text.partition("v=")[2].split()[0].split("."))


@cache
def speaks_tls() -> bool:
    """Return whether the program was built with TLS (the wheel's is not)."""
    answer = subprocess.run([_program(), "--port", "0", "--tls-port", "x"], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return "Bad directive" not in answer.stdout + answer.stderr


needs_redis = pytest.mark.skipif(
    program() is None, reason="not run: there is no redis-server (`make test` sees to one; by hand: tools/redis.sh .venv)"
)
needs_redis_tls = pytest.mark.skipif(
    program() is None or not speaks_tls(),
    reason="not run: there is no redis-server that was built with TLS (to run it put one first on PATH, such as Debian's)",
)


class RedisServer:
    """One redis-server. Made, it is not started: `start()`, or use it as a context.

    `appendfsync` None: no append-only file. `save` such as "3600 1": RDB snapshots. `users` are ACL lines without their first word, such
    as {"pipe": "on >secret ~pipe:* +@all"}; `password` is the default user's. `tls` opens a TLS port in place of the plain one ("mutual":
    clients show a certificate); its files are `ca_file`, `client_cert_file`, `client_key_file`, its own or those of the server that
    `certificates` names. `lines` are further lines of redis.conf."""

    def __init__(
        self,
        *,
        appendfsync: str | None = "always",
        save: str = "",
        maxmemory_bytes: int = 0,
        policy: str = "noeviction",
        tls: bool | str = False,
        password: str = "",
        users: Mapping[str, str] | None = None,
        lines: Sequence[str] = (),
        certificates: RedisServer | None = None,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.host = "127.0.0.1"
        self.port = 0
        self.socket_path = self.directory / "redis.sock"
        self.password = password
        self.tls = bool(tls)
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._said_before = 0
        self._lines = [
            f"dir {self.directory}",
            f"unixsocket {self.socket_path}",
            "bind 127.0.0.1",
            "daemonize no",
            "databases 16",
            f"save {save}" if save else 'save ""',
            f"maxmemory {maxmemory_bytes}",
            f"maxmemory-policy {policy}",
            "repl-diskless-sync-delay 0",
            *([f"appendfsync {appendfsync}", "appendonly yes"] if appendfsync else ["appendonly no"]),
            *([f"requirepass {password}"] if password else []),
            *(f"user {name} {rules}" for name, rules in (users or {}).items()),
            *lines,
        ]
        of = certificates.directory if certificates is not None and self.tls else self.directory
        self.ca_file, self.client_cert_file, self.client_key_file = of / "ca.pem", of / "client.pem", of / "client.key"
        self._server_pem = of / "server.pem"
        if self.tls:
            if of == self.directory:
                self._write_certificates()
            self._lines += [
                f"tls-cert-file {self._server_pem}",
                f"tls-key-file {self._server_pem}",
                f"tls-ca-cert-file {self.ca_file}",
                f"tls-auth-clients {'yes' if tls == 'mutual' else 'no'}",
            ]

    def _write_certificates(self) -> None:
        authority = trustme.CA()
        server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("client@test")
        authority.cert_pem.write_to_path(self.ca_file)
        server.private_key_and_cert_chain_pem.write_to_path(self._server_pem)
        client.cert_chain_pems[0].write_to_path(self.client_cert_file)
        client.private_key_pem.write_to_path(self.client_key_file)

    @property
    def url(self) -> str:
        """Its address, with the default user's password where it has one; `redis://127.0.0.1:port`, without a database."""
        who = f":{self.password}@" if self.password else ""
        return f"{'rediss' if self.tls else 'redis'}://{who}{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """What it has logged since its last start."""
        path = self.directory / "redis.log"
        return path.read_bytes()[self._said_before :].decode(errors="replace") if path.exists() else ""

    def start(self, *, bounded_s: float = PATIENCE_S) -> RedisServer:
        """Return when it takes connections and has loaded its data. The first start finds a free port, later ones keep it."""
        assert not self.running, "the server runs already"
        until_s = time.monotonic() + bounded_s
        first = self.port == 0
        while True:
            if first:
                self.port = free_port()  # its cluster bus is 10,000 above: no port either that a system gives away
            if self._begin(until_s):
                return self
            # somebody else took the port between our look and the server's bind, or the kernel still holds the one of before the kill
            if time.monotonic() > until_s or "in use" not in self.said:
                raise AssertionError(f"redis-server did not start; it said:\n{self.said}")
            time.sleep(0.05)

    def _begin(self, until_s: float) -> bool:
        configuration, log = self.directory / "redis.conf", self.directory / "redis.log"
        ports = ["port 0", f"tls-port {self.port}"] if self.tls else [f"port {self.port}"]
        configuration.write_text("\n".join([*ports, *self._lines, ""]))
        self._said_before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [_program(), str(configuration)], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.directory
            )
        while _READY.decode() not in self.said:
            if self._process.poll() is not None:
                return False
            if time.monotonic() > until_s:
                self.kill()
                raise AssertionError(f"redis-server was not ready in time; it said:\n{self.said}")
            time.sleep(0.005)
        return True

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone: what it had not written is lost, its directory stays for `start`."""
        self._end(signal.SIGKILL)

    def shut_down(self) -> None:
        """SIGTERM, as a service manager does: it ends in order, its directory stays for `start`."""
        self.resume()
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """SIGKILL, then start again on the same port and data."""
        self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        process, self._process, self._paused = self._process, None, False
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE_S)
            raise AssertionError(f"redis-server did not end on {number.name}; it said:\n{self.said}") from None

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        if self._process is not None and self._paused:
            self._process.send_signal(signal.SIGCONT)
            self._paused = False

    def stop(self) -> None:
        """End it, and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self if self.running else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
