"""The two emp-pipe processes of the demo: started with what a deployment would set, watched, and stopped with SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import trustme

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 25.0
# What the shell that runs the demo may have set for a real deployment, and the demo sets itself.
OWN_VARIABLES = ("EMP_", "FLUENTD_", "OTEL_", "DASH0_")
OWN_NAMES = {
    "MACHINE_ID",
    "WORKER_ID",
    "PORT",
    "HEALTH_PORT",
    "SERVICE_NAME",
    "SERVICE_TYPE",
    "SERVICE_VERSION",
    "RAILWAY_VOLUME_MOUNT_PATH",
}
# Two processes on one machine cannot both have the usual ports.
OTLP_ANYWHERE = {"EMP_OTLP_GRPC_LISTEN": "127.0.0.1:0", "EMP_OTLP_HTTP_LISTEN": "127.0.0.1:0", "EMP_HTTP_JSON_LISTEN": "127.0.0.1:0"}


class ProcessError(Exception):
    """One of the two processes did not become ready, or ended."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_certificates(directory: Path) -> None:
    """Make an authority and a certificate for this machine's loopback names: ca.pem, cert.pem, key.pem."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))


class EmpPipe:
    """One running `emp-pipe ROLE`; its data is in `<directory>/<role>`, its own log in `<directory>/<role>.log`."""

    def __init__(
        self,
        role: str,
        directory: Path,
        settings: Mapping[str, str],
        environment: Mapping[str, str],
        program: Sequence[str] = (sys.executable, "-m", "emp_pipe"),
        config_file: Path | None = None,
    ) -> None:
        self.role = role
        self.http_port = free_port()
        self.log_file = directory / f"{role}.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES) and name not in OWN_NAMES}
        command = [*program, role, "--data-dir", str(directory / role)]
        if config_file is not None:
            command += ["--config", str(config_file)]
        for key, value in {**settings, "http.listen": f"127.0.0.1:{self.http_port}"}.items():
            command += ["--set", f"{key}={value}"]
        with self.log_file.open("wb") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which then stops both in order.
            self._process = subprocess.Popen(
                command,
                env={**clean, "EMP_DISCOVERY": "off", **OTLP_ANYWHERE, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check_running()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            time.sleep(0.05)
        raise ProcessError(f"emp-pipe {self.role} was not ready within {READY_TIMEOUT_S:.0f} s\n{self.last_lines()}")

    def check_running(self) -> None:
        if self._process.poll() is not None:
            raise ProcessError(f"emp-pipe {self.role} ended with exit code {self._process.returncode}\n{self.last_lines()}")

    def last_lines(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(f"  {self.role}: {line}" for line in lines)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def stop(self) -> int:
        """End the process in order (SIGTERM), by force if it does not; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()
