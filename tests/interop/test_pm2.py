"""The real PM2 with the real pm2-logrotate: what its apps write is found and read, each line once, and they are known by their names."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emp_pipe.processes import Processes
from tests.interop import counterparts
from tests.support.command import free_port, running, until
from tests.support.command_bench import Bench, rows_in

LINES = 10_000
LOGROTATE = "pm2-logrotate@3.0.0"
_NUMBERED = re.compile(r"line \d+ of \d+")


class Pm2:
    """A daemon of PM2 with a home of its own, whose app writes where the fleet's do: /workspace/logs."""

    def __init__(self, command: Path, folder: Path) -> None:
        self._command = command
        self._environment = {"PM2_HOME": str(folder / "pm2"), "PM2_DISABLE_VERSION_CHECK": "true", "NO_COLOR": "1"}
        self.root = folder / "machine"
        self.logs = self.root / "workspace/logs"
        self.logs.mkdir(parents=True)

    def __call__(self, *arguments: str | Path) -> str:
        node = shutil.which("node") or "node"
        return counterparts.output(node, self._command, *arguments, environment=self._environment)

    def rotates(self) -> None:
        """Have every log beyond 50 KB rotated, every second. Raises RuntimeError where npm cannot fetch the module."""
        self("set", "pm2-logrotate:max_size", "50K")
        self("set", "pm2-logrotate:workerInterval", "1")
        self("install", LOGROTATE)

    def starts(self) -> None:
        paths = ["--output", self.logs / "api-out.log", "--error", self.logs / "api-error.log", "--log", self.logs / "api-combined.log"]
        self("start", counterparts.HERE / "pm2/app.cjs", "--name", "api", *paths, "--", str(LINES))

    def rotated(self, name: str) -> list[Path]:
        return list(self.logs.glob(f"{name}__*.log"))

    def lines(self) -> set[str]:
        """Return the lines of the app that are in its files now: those of the combined one are the same."""
        return set(_NUMBERED.findall("".join(path.read_text() for path in self.logs.glob("api-out*.log"))))


@pytest.fixture
def pm2(tmp_path: Path) -> Iterator[Pm2]:
    try:
        made = Pm2(counterparts.pm2(), tmp_path)
    except counterparts.Absent as reason:
        pytest.skip(str(reason))
    yield made
    made("kill")


@pytest.fixture
def rotating(pm2: Pm2) -> Pm2:
    try:
        pm2.rotates()
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        pytest.skip(str(counterparts.absent("pm2-logrotate", str(error))))
    counterparts.present("pm2-logrotate", LOGROTATE.partition("@")[2])
    return pm2


def test_what_an_app_of_pm2_writes_is_read_once_through_rotations_a_restart_and_a_kill(tmp_path: Path, rotating: Pm2) -> None:
    rotating.starts()
    bench = Bench(tmp_path)
    arguments = ["edge", "--data-dir", str(bench.data_dir)]
    for setting in (f"http.listen=127.0.0.1:{bench.http_port}", f"receivers.forward.listen=127.0.0.1:{free_port()}"):
        arguments += ["--set", setting]
    variables = {"EMP_DISCOVERY": "auto", "EMP_DISCOVERY_ROOT": str(rotating.root)}

    def found() -> set[str]:
        return {line for row in rows_in(bench.data_dir) for line in _NUMBERED.findall(row["message"])}

    with running(*arguments, **variables) as command:
        until(lambda: len(rotating.rotated("api-out")) >= 2 and len(found()) > 1000, "rotations, and lines at the destination")
        command.signal(signal.SIGKILL)
        command.wait()
    rotating("restart", "api")
    last = f"line {LINES - 1} of {rotating('pid', 'api')}"
    rotated = len(rotating.rotated("api-out"))
    until(lambda: len(rotating.rotated("api-out")) > rotated, "a rotation while nobody reads")
    with running(*arguments, **variables) as command:
        until(lambda: last in found(), "the last line")
        until(lambda: rotating.lines() <= found(), "every line that is in a file")
        once = {"component": "tail/pm2", "outcome": "appended"}
        until(
            lambda: bench.metric("emp_pipe_receiver_records", **once) == len(found()), "each line filed once, however often it was copied"
        )
        command.process.terminate()
        assert command.wait() == 0
    assert rotating.rotated("api-combined"), "it was rotated too, and no copy of it was read"


def test_an_app_of_pm2_is_known_by_its_name_with_its_restarts(pm2: Pm2) -> None:
    pm2.starts()
    pm2("restart", "api")
    processes = Processes()
    app = processes.identify(processes.scan())[int(pm2("pid", "api"))]
    assert (app.name, app.kind, app.restarts) == ("api", "pm2", 1)
