"""Runs applications under the real `emp-pipe exec` for tests: a bare environment, every wait bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from tests.support.command import PATIENCE_S, environment

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def execute(*arguments: str | Path, cwd: Path | None = None, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `emp-pipe exec` to the end of what it starts."""
    return subprocess.run(
        [sys.executable, "-m", "emp_pipe", "exec", *map(str, arguments)],
        env=environment(**variables),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def seen(*options: str, **variables: str) -> dict[str, str]:
    """Return the environment that a Python application sees under exec; nothing instruments it, so that tests are fast."""
    done = execute(*options, "--", sys.executable, "-I", "-c", SHOW, **variables)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def attributes(variables: dict[str, str]) -> dict[str, str]:
    """Return OTEL_RESOURCE_ATTRIBUTES as an SDK reads it."""
    pairs = (item.split("=", 1) for item in variables["OTEL_RESOURCE_ATTRIBUTES"].split(","))
    return {key: unquote(value) for key, value in pairs}
