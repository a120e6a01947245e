"""Runs the real `emp-pipe` command for tests: its own data directory, nothing of the tester's environment, every wait bounded."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from random import SystemRandom
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0


def environment(**variables: str) -> dict[str, str]:
    """Return a bare environment: only what Python needs, and `variables`. An edge does not look for what the tester's machine has."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    path = os.pathsep.join([str(ROOT / "python"), str(ROOT), variables.pop("PYTHONPATH", "")]).rstrip(os.pathsep)
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HOME": "/nonexistent", "EMP_DISCOVERY": "off", **variables}


def run(*arguments: str, timeout_s: float = PATIENCE_S, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "emp_pipe", *arguments],
        env=environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


_PORTS_FOR = 8


def _ports() -> Iterator[int]:
    """Ports that no system gives to who asks for any (Linux: 32768 and up), from a random one on; each worker of the tests has its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PORTS_FOR
    share = range(12_000 + worker, 22_000, _PORTS_FOR)
    start = SystemRandom().randrange(len(share))
    return cycle([*share[start:], *share[:start]])


_PORTS = _ports()


def free_port() -> int:
    """Return a port that is free, and that nothing but this process' tests takes before the test's own listener does."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Running:
    """A command that runs; its log lines are read as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def messages(self) -> list[str]:
        """Return the messages of the log lines so far."""
        return [json.loads(line)["message"] if line.startswith("{") else line for line in list(self.lines)]

    def wait_for(self, text: str, *, after: int = 0) -> str:
        """Return the first message, from number `after` on, that holds a text; fail with all lines when it does not come."""
        until = time.monotonic() + PATIENCE_S
        with self._changed:
            while True:
                for message in self.messages()[after:]:
                    if text in message:
                        return message
                left_s = until - time.monotonic()
                if left_s <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"{text!r} was not said; these lines were:\n" + "\n".join(self.lines))
                self._changed.wait(min(left_s, 0.2))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return the exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code


@contextmanager
def running(*arguments: str, ready: str = "health: ", **variables: str) -> Iterator[Running]:
    """Start a command, wait until it says that it is ready (`ready=""`: do not), kill it at the end if it still runs.

    A role's OTLP listeners get free ports unless told otherwise: there may be a Collector on the usual ones, or a second role."""
    if arguments[0] in ("edge", "central"):
        anywhere = dict.fromkeys(("EMP_OTLP_GRPC_LISTEN", "EMP_OTLP_HTTP_LISTEN", "EMP_HTTP_JSON_LISTEN"), "127.0.0.1:0")
        variables = {**anywhere, **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "emp_pipe", *arguments],
        env=environment(**variables),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    command = Running(process)
    try:
        if ready:
            command.wait_for(ready)
        yield command
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()


def until(found: Any, what: str, patience_s: float = PATIENCE_S) -> Any:
    """Call `found` until it gives something true; fail with `what` when it never does."""
    end = time.monotonic() + patience_s
    while True:
        result = found()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"never: {what}")
        time.sleep(0.02)
