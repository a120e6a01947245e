"""The programs on the other side, as their makers ship them: where they are on this machine, or why they are not there.

Everything that has to be fetched or compiled goes into `.cache/interop`, once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache/interop"
INSTALL_TIMEOUT_S = 300
COLLECTOR_TIMEOUT_S = 1200
_found: dict[str, str] = {}


class Absent(Exception):
    """A counterpart is not on this machine; the text says what is missing."""


def summary() -> list[str]:
    """Return a line for each counterpart that a test has asked for: its version, or why it was not run."""
    return [f"{name:<24} {said}" for name, said in sorted(_found.items())]


def present(name: str, version: str) -> None:
    _found[name] = f"present: {version}"


def absent(name: str, reason: str) -> Absent:
    _found[name] = f"not run: {reason}"
    return Absent(f"{name}: {reason}")


def output(
    *command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None, timeout_s: float = INSTALL_TIMEOUT_S
) -> str:
    """Return what a command printed. Raises RuntimeError with its last words when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout.strip()


def on_path(name: str, *version: str) -> Path:
    """Return a program that is on PATH. Raises Absent."""
    found = shutil.which(name)
    if found is None:
        raise absent(name, f"no {name} on PATH")
    present(name, output(found, *version).splitlines()[0])
    return Path(found)


@cache
def node_modules() -> Path:
    """Return a node_modules folder with the clients in it. Raises Absent."""
    return _installed("node", HERE / "node_client/package.json")


@cache
def pm2() -> Path:
    """Return the pm2 command. Raises Absent."""
    modules = _installed("pm2", HERE / "pm2/package.json")
    present("pm2", json.loads((modules / "pm2/package.json").read_bytes())["version"])
    return modules / "pm2/bin/pm2"


def _installed(name: str, package: Path) -> Path:
    """Return the node_modules folder with what a package.json names. Raises Absent."""
    node, npm = on_path("node", "--version"), shutil.which("npm")
    if npm is None:
        raise absent(name, f"{node} is there, npm is not")
    folder = CACHE / name
    wanted = package.read_text()
    if not (folder / "package.json").is_file() or (folder / "package.json").read_text() != wanted or not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(wanted)
        try:
            output(npm, "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", cwd=folder)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            raise absent(name, f"npm could not install it ({error})") from error
        (folder / "complete").touch()
    return folder / "node_modules"


@cache
def node_service() -> Path:
    """Return a service in Node with OpenTelemetry's packages beside it. Raises Absent."""
    node, npm = on_path("node", "--version"), shutil.which("npm")
    if npm is None:
        raise absent("node service", f"{node} is there, npm is not")
    folder, sources = CACHE / "node-service", HERE / "node_service"
    lock = (sources / "package-lock.json").read_text()
    if not (folder / "complete").is_file() or (folder / "complete").read_text() != lock:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sources, folder)
        try:
            output(npm, "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            raise absent("node service", f"npm could not install OpenTelemetry ({error})") from error
        (folder / "complete").write_text(lock)
    for source in sources.glob("*.cjs"):
        shutil.copy(source, folder)
    packages = [folder / "node_modules/@opentelemetry" / name / "package.json" for name in ("sdk-node", "auto-instrumentations-node")]
    versions = [f"{package.parent.name} {json.loads(package.read_bytes())['version']}" for package in packages]
    present("node service", ", ".join(versions))
    return folder / "service.cjs"


@cache
def go_client() -> Path:
    """Return the compiled program around fluent-logger-golang. Raises Absent."""
    go = on_path("go", "version")
    binary = CACHE / "go-client"
    sources = HERE / "go_client"
    if not binary.is_file() or any(path.stat().st_mtime > binary.stat().st_mtime for path in sources.iterdir()):
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            environment = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
            output(go, "build", "-o", binary, ".", cwd=sources, environment=environment)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            raise absent("go", f"the client could not be built ({error})") from error
    return binary


@cache
def collector() -> Path:
    """Return the OpenTelemetry Collector that the benchmarks build. Raises Absent."""
    on_path("go", "version")
    try:
        built = Path(output(ROOT / "bench/collector/build.sh", timeout_s=COLLECTOR_TIMEOUT_S).splitlines()[-1])
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        raise absent("collector", f"it could not be built ({error})") from error
    present("collector", output(built, "--version"))
    return built
