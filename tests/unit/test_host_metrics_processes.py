"""Processes: hostile names, processes that vanish while they are read, files that may not be read, and who a process is."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from emp_pipe import processes as processes_module
from emp_pipe.processes import Processes, parse_stat
from emp_pipe.readings import Readings
from emp_pipe.receivers.host_metrics_processes import ProcessMetrics

NOW = 1_760_000_000_000_000_000
BOOT = NOW - 10_000 * 1_000_000_000


def stat(pid: int, command: str = "python", *, parent: int = 1, ticks: int = 100, state: str = "S", user: int = 0, memory: int = 5) -> str:
    after = f"{state} {parent} 1 1 0 -1 0 11 0 3 0 {user} 0 0 0 20 0 4 0 {ticks} 4096 {memory} " + "0 " * 28
    return f"{pid} ({command}) {after}\n"


def put(proc: Path, pid: int, *words: str, environment: dict[str, str] | None = None, cwd: Path | None = None, **how: object) -> None:
    """Write a process into a /proc."""
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(stat(pid, **how))  # type: ignore[arg-type]
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (folder / "environ").write_bytes(b"".join(f"{key}={value}\0".encode() for key, value in (environment or {}).items()))
    if cwd is not None:
        (folder / "cwd").symlink_to(cwd)


def metrics(proc: Path, top: int = 0, **named: str) -> ProcessMetrics:
    clock = iter(range(0, 10_000, 10))
    patterns = {name: re.compile(pattern) for name, pattern in named.items()}
    return ProcessMetrics(proc=proc, boot_unix_nano=BOOT, since_unix_nano=NOW, top=top, named=patterns, clock_s=lambda: float(next(clock)))


def read(of: ProcessMetrics) -> Readings:
    readings = Readings(NOW)
    of.read(readings)
    return readings


def value(readings: Readings, name: str, **attributes: str) -> list[float]:
    wanted = {key.replace("__", "."): text for key, text in attributes.items()}
    return [float(each.value) for each in readings.points if each.name == name and wanted.items() <= dict(each.attributes).items()]


# --- stat ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["a b", "a) S 1 (b", "((((", "\n9 (x) R 1", "", ") ", "é" * 7])
def test_a_name_may_hold_anything(command: str) -> None:
    found = parse_stat(stat(77, command, parent=9, user=250).encode())
    assert found is not None
    assert (found.pid, found.command, found.parent_pid, found.user_s, found.start_ticks) == (77, command, 9, 2.5, 100)


@pytest.mark.parametrize(
    "text", [b"", b"1", b"1 (x", b"1 (x) S", b"x (x) S 1", b"\xff\x00" * 99, b"1 (x) S " + b"x " * 40, stat(1).encode()[:60]]
)
def test_a_stat_that_is_none_is_no_process(text: bytes) -> None:
    assert parse_stat(text) is None


# --- what vanishes, what may not be read --------------------------------------------------------------


def test_processes_that_come_and_go_while_they_are_read_stop_nothing() -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            subprocess.run(["/bin/true"], check=True)

    churning = [threading.Thread(target=churn) for _ in range(2)]
    for thread in churning:
        thread.start()
    try:
        of = metrics(Path("/proc"), top=50)
        for _ in range(30):
            readings = read(of)
            assert value(readings, "system.process.count", process__state="running")
            assert value(readings, "process.memory.usage")
    finally:
        stop.set()
        for thread in churning:
            thread.join()


def test_a_process_that_ends_between_the_scan_and_the_look_at_it_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, 4_190_001, "python", "train.py")
    put(tmp_path, 4_190_002, "python", "train.py")
    of = metrics(tmp_path, trainer="train")
    scanned = of._processes.scan()
    for name in ("stat", "cmdline", "environ"):
        (tmp_path / "4190001" / name).unlink()
    assert set(of._processes.identify(scanned)) == {4_190_002}
    assert set(of._processes.scan()) == {4_190_002}
    assert of.unreadable == 0


def test_processes_that_may_not_be_read_are_counted_and_the_others_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 4_190_001, "python", "train.py")
    put(tmp_path, 4_190_002, "python", "train.py")
    open_file = processes_module.os.open

    def guarded(path: object, *rest: int) -> int:
        if "/4190001/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(processes_module.os, "open", guarded)
    of = metrics(tmp_path, trainer="train")
    assert value(read(of), "process.instances", process__name="trainer") == [1]
    assert of.unreadable == 1


@pytest.mark.parametrize(("asked", "untold"), [("num_ctx_switches", "process.context_switches"), ("io_counters", "process.disk.io")])
@pytest.mark.parametrize(
    "error", [NotImplementedError("no such lines"), RuntimeError("file was empty"), ValueError("no such field")], ids=repr
)
def test_what_this_kernel_does_not_tell_of_a_process_is_left_out_and_the_rest_is_told(
    asked: str, untold: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: psutil.Process) -> None:
        raise error

    monkeypatch.setattr(psutil.Process, asked, refuse)
    names = {point.name for point in read(metrics(Path("/proc"), top=100)).points}  # this process among them
    assert untold not in names
    assert {"process.context_switches", "process.disk.io", "process.unix.file_descriptor.count", "process.uptime"} - {untold} <= names


def test_what_only_root_may_read_of_a_process_is_left_out_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    for name in ("num_fds", "io_counters"):
        monkeypatch.setattr(psutil.Process, name, refuse)
    readings = read(metrics(Path("/proc"), top=3))
    names = {point.name for point in readings.points}
    assert "process.unix.file_descriptor.count" not in names
    assert "process.disk.io" not in names
    assert {"process.cpu.time", "process.memory.usage", "process.context_switches"} <= names


def test_a_proc_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        read(metrics(tmp_path / "nowhere"))


# --- who a process is ---------------------------------------------------------------------------------


def test_a_comfyui_is_found_by_its_folder_or_its_path_and_told_by_its_port(tmp_path: Path) -> None:
    place = tmp_path / "workspace" / "ComfyUI"
    place.mkdir(parents=True)
    proc = tmp_path / "proc"
    put(proc, 1, "/sbin/init", command="init", parent=0)
    put(
        proc,
        10,
        "/venv/bin/python3.11",
        "main.py",
        "--listen",
        "--port",
        "8190",
        cwd=place,
        environment={"WORKER_ID": "worker-001", "KEY": "s"},
    )
    put(proc, 11, "python", "-u", "/opt/comfyui/main.py", cwd=tmp_path)
    put(proc, 12, "python", "main.py", "--port", "8191", cwd=tmp_path)
    put(proc, 13, "vim", "/opt/ComfyUI/main.py", cwd=place)
    put(proc, 14, "python", "/opt/ComfyUI/main.py", "--port=99999", cwd=place)
    of = Processes(proc)
    found = {pid: identity.name for pid, identity in of.identify(of.scan()).items() if identity.name}
    assert found == {10: "comfyui-8190", 11: "comfyui-8188", 14: "comfyui-8188"}
    identity = of.identify(of.scan())[10]
    assert identity.environment == {"WORKER_ID": "worker-001"}


def test_an_app_is_pm2s_only_where_its_daemon_is_the_parent(tmp_path: Path) -> None:
    app = {"PM2_HOME": "/home/x/.pm2", "pm_id": "0", "name": "api", "restart_time": "7", "SECRET": "hunter2"}
    put(tmp_path, 20, "PM2 v5.3.0: God Daemon (/home/x/.pm2)", command="PM2 v5.3.0: God")
    put(tmp_path, 21, "node", "/app/api.js", command="node", parent=20, environment=app)
    put(tmp_path, 22, "node", "/app/child.js", command="node", parent=21, environment=app)
    of = Processes(tmp_path)
    identities = of.identify(of.scan())
    assert (identities[21].name, identities[21].kind, identities[21].restarts) == ("api", "pm2", 7)
    assert (identities[20].name, identities[22].name) == ("", "")
    assert "hunter2" not in repr(identities[21].environment)


def test_an_app_of_pm2_in_cluster_mode_is_told_as_one_in_fork_mode(tmp_path: Path) -> None:
    put(tmp_path, 20, "PM2 v5.4.3: God Daemon", command="PM2 v5.4.3: God")
    own = {"pm2_env": '{"name":"clustered","restart_time":2,"pm_id":0,"KEY":"hunter2","axm_options":{}}', "WORKER_ID": "worker-042"}
    put(tmp_path, 21, "node", "/app/app.js", command="node /app/app", parent=20, environment=own)
    for pid, text in ((22, "{"), (23, "[]"), (24, "[" * 90_000), (25, '{"name": {"a": 1}}')):
        put(tmp_path, pid, "node", "x.js", command="node", parent=20, environment={"pm2_env": text})
    of = Processes(tmp_path)
    identities = of.identify(of.scan())
    assert (identities[21].name, identities[21].kind, identities[21].restarts) == ("clustered", "pm2", 2)
    assert identities[21].environment == {"WORKER_ID": "worker-042"}
    assert [identities[pid].name for pid in (22, 23, 24, 25)] == [""] * 4


def test_a_process_that_became_another_by_exec_is_asked_again(tmp_path: Path) -> None:
    put(tmp_path, 30, "sh", "start.sh", command="sh")
    of = Processes(tmp_path, {"trainer": re.compile("train")})
    assert of.identify(of.scan())[30].name == ""
    put(tmp_path, 30, "python", "train.py", command="python")
    assert of.identify(of.scan())[30].name == "trainer"


def test_what_has_ended_and_was_not_waited_for_is_nobody_and_is_counted_as_defunct(tmp_path: Path) -> None:
    put(tmp_path, 31, "python", "train.py")
    of = metrics(tmp_path, trainer="train")
    assert value(read(of), "process.instances", process__name="trainer") == [1]
    (tmp_path / "31" / "stat").write_text(stat(31, state="Z").replace(" 4096 ", " 0 "))
    readings = read(of)
    assert value(readings, "process.instances", process__name="trainer") == [0]
    assert value(readings, "system.process.count", process__state="defunct") == [1]


# --- restarts -----------------------------------------------------------------------------------------


def test_restarts_are_counted_where_nobody_else_counts_them(tmp_path: Path) -> None:
    of = metrics(tmp_path, trainer="train")
    told = []
    for ticks in (None, 100, 100, 200, None, 300):
        if ticks is None:
            for file in sorted(tmp_path.rglob("40/*")):
                file.unlink()
        else:
            put(tmp_path, 40, "python", "train.py", ticks=ticks)
        readings = read(of)
        told.append((value(readings, "process.instances")[0], value(readings, "process.restarts")[0]))
    assert told == [(0, 0), (1, 0), (1, 0), (1, 1), (0, 1), (1, 2)]


def test_more_of_a_name_are_no_restarts(tmp_path: Path) -> None:
    of = metrics(tmp_path, worker="work")
    for count in (1, 3):
        for pid in range(50, 50 + count):
            put(tmp_path, pid, "python", "work.py")
        readings = read(of)
    assert value(readings, "process.instances") == [3]
    assert value(readings, "process.restarts") == [0]


def test_pm2s_own_count_is_told_over_all_instances(tmp_path: Path) -> None:
    put(tmp_path, 20, "PM2 v5.3.0: God Daemon", command="PM2 v5.3.0: God")
    for pid, restarts in ((21, "3"), (22, "4")):
        put(tmp_path, pid, "node", "api.js", command="node", parent=20, environment={"name": "api", "restart_time": restarts})
    assert value(read(metrics(tmp_path)), "process.restarts", process__name="api", process__kind="pm2") == [7]


@pytest.mark.parametrize("restarts", ["", "-1", "x", "1e9", "9" * 50, "[object Object]"])
def test_a_count_of_pm2_that_is_none_is_not_believed(tmp_path: Path, restarts: str) -> None:
    put(tmp_path, 20, "PM2 v5.3.0: God Daemon", command="PM2 v5.3.0: God")
    put(tmp_path, 21, "node", "api.js", command="node", parent=20, environment={"name": "api", "restart_time": restarts})
    assert value(read(metrics(tmp_path)), "process.restarts", process__name="api") == [0]


# --- the top ones -------------------------------------------------------------------------------------


def test_those_that_used_the_most_and_those_that_hold_the_most_are_told_and_no_more(tmp_path: Path) -> None:
    for pid in range(4_190_000, 4_190_020):
        put(tmp_path, pid, "python", f"{pid}.py", user=0, memory=pid - 4_190_000 + 1)
    of = metrics(tmp_path, top=2)
    read(of)
    for pid, user in ((4_190_003, 500), (4_190_004, 400), (4_190_005, 300)):
        put(tmp_path, pid, "python", f"{pid}.py", user=user, memory=pid - 4_190_000 + 1)
    readings = read(of)
    pids = {dict(point.resource)["process.pid"] for point in readings.points if point.name == "process.memory.usage"}
    assert pids == {4_190_003, 4_190_004, 4_190_018, 4_190_019}
    shares = {dict(point.resource)["process.pid"]: point.value for point in readings.points if point.name == "process.cpu.utilization"}
    assert shares[4_190_003] == 5.0 / 10.0 / (psutil.cpu_count() or 1)


def test_a_thousand_names_stay_bounded(tmp_path: Path) -> None:
    put(tmp_path, 20, "PM2 v5.3.0: God Daemon", command="PM2 v5.3.0: God")
    for pid in range(4_190_000, 4_191_000):
        put(tmp_path, pid, "node", "x.js", command="node", parent=20, environment={"name": f"app-{pid}"})
    readings = read(metrics(tmp_path))
    assert len(value(readings, "process.instances")) == 256
    assert len({point.resource for point in readings.points if point.name == "process.memory.usage"}) == 64


def test_no_argument_is_told(tmp_path: Path) -> None:
    put(tmp_path, 60, sys.executable, "train.py", "--token=hunter2")
    assert "hunter2" not in repr(read(metrics(tmp_path, top=5, trainer="train")).points)
