"""emp-pipe's own log lines: for people on a terminal, JSON otherwise."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from emp_pipe import log_lines
from emp_pipe.logs import get_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("emp_pipe")
    handlers, levels = list(root.handlers), (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def test_a_line_is_json_with_the_fleets_field_names_where_no_one_watches() -> None:
    stream = io.StringIO()
    log_lines.set_up("info", machine_id="gpu-1", role="edge", stream=stream)
    get_logger("forward/secure").warning("peer %s\nrefused", "10.0.0.7")
    fields = json.loads(stream.getvalue())
    assert fields["message"] == "peer 10.0.0.7\nrefused"
    assert fields["level"] == "warn"
    assert fields["source"] == "forward/secure"
    assert fields["machine_id"] == "gpu-1"
    assert fields["service_type"] == "emp-pipe-edge"
    assert fields["timestamp"].endswith("Z")


def test_a_line_is_short_and_coloured_on_a_terminal() -> None:
    stream = Terminal()
    log_lines.set_up("info", machine_id="gpu-1", role="edge", stream=stream)
    get_logger("forward").error("broken")
    assert "\x1b[31m" in stream.getvalue()
    assert "ERROR forward: broken" in stream.getvalue()


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    log_lines.set_up("warning", machine_id="gpu-1", role="edge", stream=stream)
    get_logger("forward").info("quiet")
    assert stream.getvalue() == ""


def test_an_exception_comes_with_its_stack() -> None:
    stream = io.StringIO()
    log_lines.set_up("info", machine_id="gpu-1", role="edge", stream=stream)
    try:
        raise ValueError("deep")
    except ValueError:
        get_logger("forward").exception("failed")
    assert "ValueError: deep" in json.loads(stream.getvalue())["stack"]
