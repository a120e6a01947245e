"""Processes as they stand on a GPU machine, made of what is here: a ComfyUI, PM2's daemon and an app of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SLEEP = "import sys, time\nprint('up', flush=True)\ntime.sleep(600)\n"
_DAEMON = """
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(15, b"PM2 v5.3.0: God")
restarts, apps = 0, []
def start():
    env = dict(os.environ, PM2_HOME="/nonexistent/.pm2", pm_id="0", name="api", restart_time=str(restarts))
    env |= {"WORKER_ID": "worker-001", "SECRET": "hunter2"}
    apps.append(subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=env, stdout=subprocess.PIPE))
    apps[-1].stdout.readline()
start()
print("up", flush=True)
for line in sys.stdin:
    apps[-1].kill(); apps[-1].wait()
    if line.strip() == "restart":
        restarts += 1
        start()
    print("done", flush=True)
apps[-1].kill()
"""


def _started(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() in ("up", "done")


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        _started(process)
        yield
    finally:
        if process.stdin is not None and process.poll() is None:
            process.stdin.close()
            process.wait(30)
        process.kill()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def comfyui(folder: Path, port: int, worker_id: str = "") -> Iterator[int]:
    """A process that looks like a ComfyUI; its pid."""
    place = folder / "ComfyUI"
    place.mkdir(exist_ok=True)
    (place / "main.py").write_text(_SLEEP)
    environment = {**os.environ, "WORKER_ID": worker_id} if worker_id else dict(os.environ)
    command = [sys.executable, "main.py", "--listen", "--port", str(port)]
    process = subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
    with _ended(process):
        yield process.pid


class Pm2:
    """A daemon with one app, `api`, that restarts or stops it when told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        _started(self._process)


@contextmanager
def pm2() -> Iterator[Pm2]:
    process = subprocess.Popen([sys.executable, "-c", _DAEMON, _SLEEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with _ended(process):
        yield Pm2(process)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
