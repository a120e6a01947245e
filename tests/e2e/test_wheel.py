"""What somebody gets who installs the wheel: a base that brings nothing, and with an extra a command that runs.

The wheel is built from this checkout with the profile of `make build`, so nothing is compiled twice, and installed in empty environments.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from demo.processes import EmpPipe, free_port

ROOT = Path(__file__).resolve().parents[2]
# Building and installing depend on how busy the machine and the package index are; nothing here measures time.
pytestmark = pytest.mark.timeout(600)


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    # As `make build` has it, or cargo would compile the binding once more for what it takes for another Python.
    environment = {**kept, "VIRTUAL_ENV": sys.prefix, "PYO3_PYTHON": sys.executable}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=580
    )
    if options.get("check", True):
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "maturin", "build", "--locked", "--profile", os.environ.get("PROFILE") or "dev-release", "--out", directory)
    (built,) = directory.glob("*.whl")
    return built


def empty_environment(directory: Path) -> Path:
    """Return the bin directory of a new virtual environment with nothing in it, not even pip."""
    run(sys.executable, "-m", "venv", "--without-pip", directory)
    return directory / "bin"


def install(binaries: Path, *arguments: str | Path) -> None:
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        binaries / "python",
        "install",
        "--quiet",
        "--no-compile",
        "--disable-pip-version-check",
        *arguments,
    )


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    binaries = empty_environment(tmp_path_factory.mktemp("base") / "venv")
    install(binaries, "--no-index", wheel)  # without an index nothing else can come along
    return binaries


@pytest.fixture(scope="module", params=["edge", "central"])
def with_extra(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    extra = str(request.param)
    binaries = empty_environment(tmp_path_factory.mktemp(extra) / "venv")
    # The versions that the other tests ran with; the constraint installs nothing by itself.
    install(binaries, "--constraint", ROOT / "requirements/dev.txt", f"emp-pipe[{extra}] @ {wheel.as_uri()}")
    return extra, binaries


def test_the_wheel_fits_every_python_from_3_11_on(wheel: Path) -> None:
    assert wheel.name.startswith("emp_pipe-")
    assert "-cp311-abi3-" in wheel.name


def test_the_wheel_holds_the_package_and_nothing_of_where_it_was_built(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {"emp_pipe", "emp_pipe-0.1.0.dist-info"}
        assert [name for name in names if name.endswith("LICENSE")]
        text = [name for name in names if not name.endswith(".so")]
        assert [name for name in text if str(ROOT).encode() in archive.read(name)] == []


def test_the_base_install_imports_with_nothing_beside_it(base: Path) -> None:
    code = "import importlib.metadata as m, emp_pipe, emp_pipe._core as c; print(sorted(d.name for d in m.distributions()), c.__version__)"
    done = run(base / "python", "-c", code)
    assert done.stdout.split("] ")[0] + "]" == "['emp-pipe']"
    assert done.stdout.split()[-1] == "0.1.0"


def test_the_base_install_carries_its_types(base: Path) -> None:
    code = (
        "import emp_pipe, pathlib; d = pathlib.Path(emp_pipe.__file__).parent; print((d / 'py.typed').exists(), (d / '_core.pyi').exists())"
    )
    assert run(base / "python", "-c", code).stdout.split() == ["True", "True"]


def test_the_bare_command_says_what_to_install(base: Path) -> None:
    done = run(base / "emp-pipe", "edge", check=False)
    assert done.returncode == 2
    assert "emp-pipe[edge]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_wheel_holds_what_exec_puts_into_applications(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"emp_pipe/otel.py", "emp_pipe/otel_node.cjs", "emp_pipe/otel_site/emp_pipe_otel.py"} <= names
        assert {f"emp_pipe/otel_site/emp_pipe_otel-1.dist-info/{name}" for name in ("METADATA", "entry_points.txt")} <= names
        assert b"emp_pipe.otel:instrumented" in archive.read("emp_pipe-0.1.0.dist-info/entry_points.txt")


def test_exec_works_from_the_base_install(base: Path) -> None:
    code = """import importlib.metadata, os
print([entry.value for entry in importlib.metadata.entry_points(group="opentelemetry_pre_instrument")])
print(os.environ["OTEL_RESOURCE_ATTRIBUTES"])
"""
    done = run(base / "emp-pipe", "exec", "--worker-id", "w-1", "--", base / "python", "-c", code)
    assert "worker_id=w-1" in done.stdout
    assert "emp_pipe.otel:instrumented" in done.stdout
    assert "opentelemetry-instrument is not installed" in done.stderr


def test_the_command_says_its_version(with_extra: tuple[str, Path]) -> None:
    _, binaries = with_extra
    assert run(binaries / "emp-pipe", "--version").stdout.split() == ["emp-pipe", "0.1.0"]


def test_a_role_starts_becomes_ready_and_ends_at_sigterm(with_extra: tuple[str, Path], tmp_path: Path) -> None:
    role, binaries = with_extra
    settings = {"receivers.forward.listen": f"127.0.0.1:{free_port()}"}
    process = EmpPipe(role, tmp_path, settings, {"HOME": str(tmp_path)}, program=[str(binaries / "emp-pipe")])
    try:
        process.wait_ready()
    finally:
        exit_code = process.stop()
    assert exit_code == 0, process.last_lines()
    assert "Traceback" not in process.log_file.read_text()
