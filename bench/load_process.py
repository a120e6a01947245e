"""What both load generators are: a process of its own that builds what it will send before the timed part, sends it when told, and reports.

It is never counted in anybody's CPU. `LoadProcess` is the benchmark's handle on it; the process itself runs `serve`.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

L = TypeVar("L")
B = TypeVar("B")


@dataclass(slots=True)
class LoadReport:
    """What was sent and how long it took; `ack_latency_s` has one value per acked segment."""

    started_monotonic_s: float = 0.0
    ended_monotonic_s: float = 0.0
    segments: int = 0
    ack_latency_s: list[float] = field(default_factory=list)
    late_s: float = 0.0
    """Paced only: how far behind its schedule the slowest segment was written; more than a little means that the pace was not held."""
    refused: int = 0
    """OTLP only: how often a request was refused for the moment and sent again."""
    error: str = ""

    @property
    def duration_s(self) -> float:
        return self.ended_monotonic_s - self.started_monotonic_s


class LoadProcess(Generic[L]):
    """The process that sends loads of a kind. `prepare` builds one, `start` begins, `wait` returns the report."""

    def __init__(self, name: str, serving: Callable[..., None], *arguments: Any, answer_timeout_s: float) -> None:
        """`serving` is called in the process with its end of the connection and the arguments."""
        context = multiprocessing.get_context("spawn")
        self._answer_timeout_s = answer_timeout_s
        self._control, theirs = context.Pipe()
        self._process = context.Process(target=serving, args=(theirs, *arguments), name=name, daemon=True)
        self._process.start()
        theirs.close()  # so that its end is noticed

    def prepare(self, load: L) -> None:
        self._control.send(("prepare", load))
        if not self._control.poll(self._answer_timeout_s):
            raise RuntimeError("the load generator does not answer")
        self._control.recv()

    def start(self, port: int) -> None:
        self._control.send(("run", port))

    def wait(self, timeout_s: float) -> LoadReport:
        if not self._control.poll(timeout_s):
            raise TimeoutError(f"the load was not sent within {timeout_s:.0f} s: the receiver stopped reading or answering")
        report: LoadReport = self._control.recv()
        if report.error:
            raise ConnectionError(f"load generator: {report.error}")
        return report

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def serve(control: Connection, build: Callable[[L], B], send: Callable[[L, B, int], LoadReport]) -> None:
    """Build loads and send them to a port, as the other end says, until it is closed."""
    prepared: tuple[L, B] | None = None
    while True:
        try:
            command, argument = control.recv()
        except EOFError:
            return
        if command == "prepare":
            prepared = argument, build(argument)
            control.send(None)
        elif prepared is not None:
            control.send(send(*prepared, argument))


def run_together(threads: Sequence[threading.Thread]) -> None:
    """Start threads and return when all have ended."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
