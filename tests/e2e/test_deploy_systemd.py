"""`deploy/emp-pipe-edge.service`: systemd takes it, its hardening is what it says, and its command runs with its privileges alone."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.command import PATIENCE_S, ROOT, environment, run, until

UNIT = ROOT / "deploy/emp-pipe-edge.service"
MOST_EXPOSURE = 30
"""In tenths, as `systemd-analyze security` counts; 96 is a unit without any hardening."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="not run: there is no systemd-analyze (Debian's package systemd has it)"
)


def settings() -> list[tuple[str, str]]:
    return [(name, value) for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE)]


def values(name: str) -> list[str]:
    return [value for found, value in settings() if found == name]


def command() -> list[str]:
    """Return what ExecStart runs, without the program."""
    (line,) = values("ExecStart")
    program, *arguments = shlex.split(line)
    assert program == "/opt/emp-pipe/bin/emp-pipe"
    return arguments


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there: systemd looks."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/emp-pipe/bin/emp-pipe", sys.executable))
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_systemd_would_say_of_a_setting_that_it_does_not_know(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    assert "WatchdogSeconds" in analyze("verify", "--man=no", unit).stderr


@needs_systemd
def test_its_hardening_leaves_little_exposed(unit: Path) -> None:
    done = analyze("security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSURE}", unit)
    if "unrecognized option" in done.stderr:
        pytest.skip("not run: this systemd-analyze judges no unit that is not loaded (systemd 250 and newer do)")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_systemd_is_told_by_the_command_itself_and_is_patient_with_a_slow_disk() -> None:
    assert values("Type") == ["notify"]
    (watchdog_s,) = values("WatchdogSec")
    assert int(watchdog_s) >= 60, "a disk may take its time"
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_its_state_is_where_administrative_commands_of_root_look_for_an_edge() -> None:
    where = command()[command().index("--data-dir") + 1]
    assert where == "/var/lib/emp-pipe/edge"
    assert where.removeprefix("/var/lib/") in values("StateDirectory")[0].split()


def test_its_command_is_one_that_emp_pipe_has() -> None:
    done = run(*command(), "--print-config")
    assert done.returncode == 0, done.stderr
    assert "/var/lib/emp-pipe/edge" in done.stdout


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="not run: another user with the unit's capabilities (to run it be root, with util-linux's setpriv on PATH)",
)
def test_with_the_unit_s_capabilities_nobody_in_particular_reads_closed_logs_and_writes_its_state_alone(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own are closed to others, one more of them where several workers run
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    log, data, manager = tmp_path / "closed.log", tmp_path / "data", tmp_path / "notify"
    log.write_text("what only root may read\n")
    log.chmod(0o600)
    data.mkdir()
    os.chown(data, 65534, 65534)
    file = tmp_path / "edge.yaml"
    file.write_text(f'http: {{enabled: false}}\nreceivers: {{tail: {{include: ["{log}"], from: beginning}}}}\nexporters: {{file: }}\n')
    capabilities = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in values("AmbientCapabilities")[0].split())
    assert values("CapabilityBoundingSet") == values("AmbientCapabilities")
    assert values("NoNewPrivileges") == ["yes"]
    privileges = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", f"--bounding-set=-all,{capabilities}"]
    privileges += [f"--inh-caps=-all,{capabilities}", f"--ambient-caps=-all,{capabilities}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(manager))
        manager.chmod(0o777)
        told.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            ["setpriv", *privileges, sys.executable, "-m", "emp_pipe", "run", str(file), "--data-dir", str(data)],
            env=environment(NOTIFY_SOCKET=str(manager)),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert told.recv(4096) == b"READY=1"
            written = until(lambda: [path for path in data.rglob("*.json*") if path.stat().st_size], "a file of records")
            assert "what only root may read" in written[0].read_text()
            assert written[0].stat().st_uid == 65534
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            print(process.communicate()[1])  # pytest shows it where something failed
