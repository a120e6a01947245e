"""The context that a component is given in tests."""

from __future__ import annotations

from pathlib import Path

from emp_pipe.clock import Clock, SystemClock
from emp_pipe.component import Context
from emp_pipe.self_metrics import Metrics


def make_context(clock: Clock | None = None, data_dir: Path = Path("unused")) -> Context:
    return Context(clock=clock or SystemClock(), metrics=Metrics(), data_dir=data_dir, machine_id="gpu-test", role="run")
