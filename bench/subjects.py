"""What is measured: emp-pipe and the Collector as process trees, with their CPU time and resident memory.

CPU time is the kernel's own nanosecond count of each live process of the tree (threads that ended included), plus what ended children
left behind. A `Subject` may be several processes that form one chain.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
COLLECTOR = REPOSITORY / ".cache" / "collector" / "otelcol-bench"
_CLOCK_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: it is ready when all `ports` of loopback accept."""

    name: str
    arguments: Sequence[str]
    ports: Sequence[int]


class Subject:
    """One or more processes under measurement, started in the order given."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._processes: list[tuple[Command, subprocess.Popen[bytes]]] = []
        self._peak_rss_bytes = 0
        self._sampling = threading.Event()
        self._sampler: threading.Thread | None = None

    def start(self, command: Command, timeout_s: float = 30.0) -> None:
        output = (self._folder / f"{command.name}.output").open("wb")
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "DASH0_", "EMP_", "FLUENTD_", "SENTRY_"))
        }
        environment |= {"PYTHONPATH": str(REPOSITORY / "python"), "EMP_DISCOVERY": "off"}
        process = subprocess.Popen(
            command.arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self._folder, env=environment
        )
        output.close()
        self._processes.append((command, process))
        deadline = time.monotonic() + timeout_s
        for port in command.ports:
            while not _accepts(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command.name} did not start (port {port}):\n{self._tail(command)}")
                time.sleep(0.02)

    def pids(self) -> list[int]:
        return [process.pid for process in self._tree()]

    def cpu_s(self) -> float:
        """User and system CPU time of all processes since they began."""
        return cpu_of(self.pids())

    def rss_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self._tree())

    def watch_memory(self, interval_s: float = 0.1) -> None:
        """Note the highest resident size from now until `stop`."""
        self._sampler = threading.Thread(target=self._watch, args=(interval_s,), daemon=True)
        self._sampler.start()

    @property
    def peak_rss_bytes(self) -> int:
        return self._peak_rss_bytes

    def check_alive(self) -> None:
        for command, process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"{command.name} ended with status {process.returncode}:\n{self._tail(command)}")

    def stop(self) -> None:
        self._sampling.set()
        for _, process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if self._sampler is not None:
            self._sampler.join()
        self._processes.clear()

    def output(self) -> str:
        return "\n".join(self._tail(command) for command, _ in self._processes)

    def _watch(self, interval_s: float) -> None:
        while not self._sampling.wait(interval_s):
            try:
                self._peak_rss_bytes = max(self._peak_rss_bytes, self.rss_bytes())
            except psutil.NoSuchProcess:
                return

    def _tree(self) -> list[psutil.Process]:
        roots = [psutil.Process(process.pid) for _, process in self._processes]
        return [process for root in roots for process in (root, *root.children(recursive=True))]

    def _tail(self, command: Command) -> str:
        return (self._folder / f"{command.name}.output").read_text(errors="replace")[-3000:]


def cpu_of(pids: Iterable[int]) -> float:
    """Return the user and system CPU time of processes since they began."""
    return sum(map(_process_cpu_s, pids))


def _process_cpu_s(pid: int) -> float:
    # The process CPU-time clock id of another process, as clock_getcpuclockid(3) computes it: nanoseconds where /proc has hundredths.
    own_s = time.clock_gettime((~pid << 3) | 2)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return own_s + (int(fields[13]) + int(fields[14])) * _CLOCK_TICK_S


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def emp_pipe_command(name: str, config: Path, ports: Sequence[int], *, role: str = "run") -> Command:
    arguments = ["run", str(config)] if role == "run" else [role, "--config", str(config)]
    return Command(name, [sys.executable, "-m", "emp_pipe", *arguments], ports)


def collector_command(name: str, config: Path, ports: Sequence[int]) -> Command:
    return Command(name, [str(COLLECTOR), "--config", str(config)], ports)
