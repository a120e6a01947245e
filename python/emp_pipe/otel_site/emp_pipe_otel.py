"""What `emp-pipe exec` puts on an application's PYTHONPATH: one entry point, which OpenTelemetry's auto-instrumentation calls.

The folder beside it makes it a distribution, so that it is found without being installed. The application need not have emp-pipe:
`emp_pipe/otel.py` is loaded by its place.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path


def instrumented() -> None:
    """Called when the SDK is set up."""
    spec = importlib.util.spec_from_file_location("_emp_pipe_otel", Path(__file__).resolve().parent.parent / "otel.py")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.instrumented()
