"""The real logrotate beside the real command: numbered lines, rotations, and kills; no line missing and none twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command import running, until
from tests.support.command_bench import Bench, rows_in

LOGROTATE = shutil.which("logrotate") or "/usr/sbin/logrotate"
ROTATIONS = 6
LINES = 400


@pytest.fixture
def logrotate() -> str:
    if not Path(LOGROTATE).exists():
        pytest.skip("not run: there is no logrotate here (Debian: apt-get install logrotate)")
    return LOGROTATE


@pytest.mark.parametrize(
    "how",
    [
        "create",
        "create\n compress",
        "create\n compress\n delaycompress",
        "create\n dateext\n dateformat -%Y%m%d-%s",
        "copytruncate",
        "copytruncate\n compress",
    ],
    ids=["renamed", "packed", "packed later", "by date", "copied and truncated", "copied, truncated and packed"],
)
def test_no_line_is_missing_and_none_is_there_twice(tmp_path: Path, logrotate: str, how: str) -> None:
    bench = Bench(tmp_path)
    logs = tmp_path / "logs"
    logs.mkdir()
    log = logs / "app.log"
    log.touch()
    rules = tmp_path / "rules"
    rules.write_text(f"{log} {{\n rotate 20\n missingok\n nomail\n su root root\n {how}\n}}\n")
    rules.chmod(0o644)
    bench.write(receivers=f"{{tail: {{include: ['{logs}/*.log'], poll_interval_s: 0.05, rotate_wait_s: 1}}}}")
    written = 0

    def write() -> None:
        nonlocal written
        with log.open("a") as file:
            for _ in range(LINES):
                file.write(f"line {written}\n")
                written += 1

    def rotate() -> None:
        second = int(time.time())
        while "dateext" in how and int(time.time()) == second:  # the name has the second in it
            time.sleep(0.05)
        done = subprocess.run(
            [logrotate, "--force", "--state", str(tmp_path / "state"), str(rules)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    for round in range(3):
        with running(*bench.arguments) as command:
            for _ in range(ROTATIONS // 3):
                write()
                rotate()
            write()
            if round < 2:
                until(lambda least=written // 3: len(rows_in(bench.data_dir)) >= least, "some lines at the destination")
                command.signal(signal.SIGKILL)
                command.wait()
                write()
                rotate()  # while nobody reads
                write()
            else:
                until(lambda: len({row["message"] for row in rows_in(bench.data_dir)}) >= written, "all lines at the destination")
                filed = bench.metric("emp_pipe_receiver_records", component="tail", outcome="appended")
                found = {row["message"] for row in rows_in(bench.data_dir)}
                command.process.terminate()
                assert command.wait() == 0
    assert found == {f"line {number}" for number in range(written)}
    assert filed == written, "each line was filed once, however often the process was killed"
