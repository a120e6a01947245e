"""Promises of the native module itself: what destinations answer is read, and a debug build does not pass unnoticed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

import emp_pipe
from emp_pipe import _core


def test_a_partial_success_is_read_whatever_the_signal() -> None:
    for response in (
        ExportLogsServiceResponse(partial_success={"rejected_log_records": 3, "error_message": "too old"}),  # type: ignore[arg-type]
        ExportTraceServiceResponse(partial_success={"rejected_spans": 3, "error_message": "too old"}),  # type: ignore[arg-type]
        ExportMetricsServiceResponse(partial_success={"rejected_data_points": 3, "error_message": "too old"}),  # type: ignore[arg-type]
    ):
        parsed = _core.parse_export_response(bytearray(response.SerializeToString()))
        assert (parsed.rejected, parsed.message) == (3, "too old")


def test_a_full_success_rejects_nothing_and_what_is_no_response_is_an_error() -> None:
    assert _core.parse_export_response(b"").rejected == 0
    with pytest.raises(_core.CoreError) as caught:
        _core.parse_export_response(b"<html>")
    assert caught.value.kind == "body_invalid"


def test_the_message_of_a_status_is_read_and_anything_else_says_nothing() -> None:
    status = bytes([0x08, 3, 0x12, 9]) + b"bad field"

    assert _core.parse_status(memoryview(status)) == "bad field"
    assert _core.parse_status(b"<html>502 Bad Gateway</html>") == ""


def test_a_debug_build_warns_when_it_is_imported_and_no_other_does() -> None:
    imported = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import emp_pipe._core"], capture_output=True, text=True, check=False, timeout=60
    )

    assert ("is a debug build" in imported.stderr) == (imported.returncode != 0) == _core.IS_DEBUG_BUILD


def test_the_core_and_the_package_are_of_one_version() -> None:
    assert _core.__version__ == emp_pipe.__version__
