"""A real Docker daemon: containers with both log drivers, their starts and ends, and memory that runs out.

The daemon is the one on PATH or Debian's packages, unpacked into `.cache/interop`. It is started for the test with directories of its own,
without network and without touching the firewall; the image is one static program. It takes root.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.interop import counterparts
from tests.support.command import running, until
from tests.support.command_bench import Bench, rows_in

PACKAGES = ("docker.io", "containerd", "runc", "busybox-static")


@cache
def programs() -> str:
    """Return a PATH on which dockerd, its helpers and busybox are."""
    if os.geteuid() != 0:
        raise counterparts.absent("dockerd", "it takes root")
    unpacked = counterparts.CACHE / "docker"
    path = os.pathsep.join([*(str(unpacked / folder) for folder in ("usr/sbin", "usr/bin", "bin")), os.environ["PATH"]])
    if not all(shutil.which(name, path=path) for name in ("dockerd", "containerd", "runc", "busybox")):
        if not shutil.which("apt-get"):
            raise counterparts.absent("dockerd", "it is not on PATH, and there is no apt-get to fetch Debian's")
        with tempfile.TemporaryDirectory() as fetched:
            command = ["apt-get", "download", *PACKAGES]
            done = subprocess.run(command, cwd=fetched, capture_output=True, text=True, timeout=counterparts.INSTALL_TIMEOUT_S, check=False)
            if done.returncode:
                raise counterparts.absent("dockerd", f"Debian's packages could not be fetched ({done.stderr.strip()[-200:]})")
            unpacked.mkdir(parents=True, exist_ok=True)
            for package in Path(fetched).glob("*.deb"):
                subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True, timeout=counterparts.INSTALL_TIMEOUT_S)
    version = subprocess.run(["dockerd", "--version"], env={"PATH": path}, capture_output=True, text=True, timeout=60, check=True)
    counterparts.present("dockerd", version.stdout.strip())
    return path


class Docker:
    """A daemon of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.path = programs()
        self.socket = directory / "d.sock"
        self.data = directory / "data"
        self._log = (directory / "dockerd.log").open("wb")
        command = ["dockerd", f"--data-root={self.data}", f"--exec-root={directory}/exec", f"--pidfile={directory}/pid"]
        command += [f"--host=unix://{self.socket}", "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        self._process = subprocess.Popen([*command, "--storage-driver=vfs"], env={"PATH": self.path}, stdout=self._log, stderr=self._log)

    def client(self, *arguments: str, input: bytes | None = None) -> str:
        command = ["docker", f"--host=unix://{self.socket}", *arguments]
        done = subprocess.run(command, env={"PATH": self.path}, input=input, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def begin(self) -> None:
        until(self.socket.exists, "the daemon's socket")
        image = io.BytesIO()
        with tarfile.open(fileobj=image, mode="w") as tar:
            busybox = shutil.which("busybox", path=self.path)
            assert busybox
            tar.add(os.path.realpath(busybox), "bin/busybox")
            link = tarfile.TarInfo("bin/sh")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        self.client("import", "-", "tiny:1", input=image.getvalue())

    def run(self, name: str, script: str, *more: str) -> str:
        return self.client("run", "-d", "--network=none", f"--name={name}", *more, "tiny:1", "/bin/sh", "-c", script)

    def end(self) -> None:
        for id in self.client("ps", "-aq").split():
            self.client("rm", "-f", id)
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._log.close()


@pytest.fixture
def docker() -> Iterator[Docker]:
    directory = Path(tempfile.mkdtemp(prefix="emp-docker-"))  # a socket's path is short
    try:
        daemon = Docker(directory)
    except counterparts.Absent as absent:
        pytest.skip(str(absent))
    try:
        try:
            daemon.begin()
            daemon.run("probe", "true")
        except AssertionError as error:
            pytest.skip(f"not run: containers cannot be run here ({error})")
        yield daemon
    finally:
        daemon.end()
        shutil.rmtree(directory, ignore_errors=True)


def test_logs_and_events_of_real_containers_come_once_over_a_kill(docker: Docker, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    settings = {"socket": str(docker.socket), "containers_directory": str(docker.data / "containers"), "retry_s": 1}
    bench.write(receivers=json.dumps({"docker": settings}))
    long = 'busybox head -c 40000 /dev/zero | busybox tr "\\0" x; echo; echo after; echo wrong >&2; exit 3'
    labels = ("--label=com.docker.compose.service=web", "--label=com.docker.compose.project=shop", "--label=team=vision")

    def rows() -> list[dict[str, Any]]:
        return [row for row in rows_in(bench.data_dir) if row.get("container.name") != "probe"]

    def texts(container: str) -> list[str]:
        found = [row["message"].rstrip("\n") for row in rows() if row.get("container.name") == container and "event_type" not in row]
        return sorted(f"{text[:1]}*{len(text)}" if len(text) > 100 else text for text in found)

    with running(*bench.arguments) as command:
        until(lambda: bench.metric("emp_pipe_tail_followed_files", component="docker") >= 1, "it has begun")
        docker.run("by-file", long, "--log-driver=json-file", *labels)
        docker.run("by-socket", long, "--log-driver=local", *labels)
        until(lambda: len([row for row in rows() if row.get("event_type") == "service_stopped"]) == 2, "both have ended", 60)
        expected = sorted(["x*40000", "after", "wrong"])
        until(lambda: texts("by-socket") == expected, "the log by socket")
        until(lambda: texts("by-file") == expected, "the log by file")
        until(lambda: bench.groups()["file"]["held_records"] == 0, "nothing held")
        command.signal(signal.SIGKILL)
        command.wait()
    before = len(rows())
    docker.run("later", "echo one; exec busybox sleep 600", "--log-driver=local")
    with running(*bench.arguments):
        until(lambda: texts("later") == ["one"], "the log of the one that was started meanwhile")
        docker.client("stop", "--time=1", "later")
        until(lambda: len([row for row in rows() if row.get("event_type")]) == 6, "its end")
    assert len(rows()) == before + 3
    web = next(row for row in rows() if row.get("container.name") == "by-file" and row["message"].startswith("after"))
    assert (web["service.name"], web["service.namespace"], web["container.label.team"]) == ("web", "shop", "vision")
    assert (web["container.image.name"], web["container.image.tag"]) == ("tiny", "1")
    ends = [row for row in rows() if row.get("event_type") == "service_stopped"]
    assert [(row["container.name"], row["container.exit_code"], row["level"]) for row in ends[:2]] in (
        [("by-file", 3, "error"), ("by-socket", 3, "error")],
        [("by-socket", 3, "error"), ("by-file", 3, "error")],
    )


def test_memory_that_runs_out_is_told(docker: Docker, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(receivers=json.dumps({"docker": {"socket": str(docker.socket), "logs": "off"}}))
    with running(*bench.arguments):
        until(lambda: bench.metric("emp_pipe_receiver_records_total") >= 0, "it has begun")
        eater = "x=a; while true; do x=$x$x; done"
        try:
            docker.run("eater", eater, "--memory=16m", "--memory-swap=16m")
        except AssertionError as error:
            pytest.skip(f"not run: no memory limit can be set here ({error})")
        row = until(lambda: next((row for row in rows_in(bench.data_dir) if row.get("event_type") == "error_oom"), None), "the event", 60)
    assert (row["container.name"], row["level"], row["error_type"]) == ("eater", "error", "memory")
