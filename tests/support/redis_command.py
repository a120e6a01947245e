"""The command with its log in Redis, as several files of tests try it."""

from __future__ import annotations

import re
import signal

from tests.support.command import ROOT, run, running
from tests.support.command_bench import Bench, send, wait_for_rows

LIMIT_BYTES = 512 << 20
NEVER = 'otlp_http: {endpoint: "http://127.0.0.1:9", retry_max_s: 1}'
"""A destination that is not there."""


def rule_in_the_documentation() -> str:
    """Return the ACL rule that docs/redis.md gives."""
    text = (ROOT / "docs" / "redis.md").read_text()
    found = re.search(r"## The least an ACL user needs.*?```\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return " ".join(found[1].split())


def in_and_out(bench: Bench, *, log_on_disk: bool = False, **variables: str) -> list[str]:
    """Send records through the command and see them come out; return what it said."""
    with running(*bench.arguments, **variables) as process:
        send(bench.port, 20)
        wait_for_rows(bench.data_dir, 20)
        said = process.messages()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert (bench.data_dir / "log").exists() is log_on_disk
    return said


def refused(bench: Bench, says: str, code: int = 2, **variables: str) -> str:
    result = run(*bench.arguments, **variables)
    assert result.returncode == code, result.stderr
    assert says in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr
