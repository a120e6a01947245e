"""The RUN steps of `deploy/Dockerfile`, done in a clean Debian: what they make is an emp-pipe that its own user can start.

A clean root comes from debootstrap, and steps are run in it by chroot; the stage that compiles wants an image with Rust, and is named as
not run. It is in `make interop`, for a clean Debian is some minutes of fetching. Its wheel is built here instead, as `make build` does it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_wheel import wheel  # noqa: F401 (a fixture)
from tests.support.command import ROOT

pytestmark = pytest.mark.timeout(1300)
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
ENVIRONMENT = {"PATH": "/opt/emp-pipe/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "XDG_STATE_HOME": "/var/lib"}
ASKED = tuple(name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("PIP_"))


def stage(name: str) -> list[tuple[str, str]]:
    (text,) = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)


def steps(name: str) -> list[str]:
    """Return the commands of a stage's RUN steps, without what BuildKit mounts for them."""
    return [re.sub(r"^--mount=\S+ ", "", text) for word, text in stage(name) if word == "RUN"]


def in_root(root: Path, *command: str, user: str = "0:0") -> subprocess.CompletedProcess[str]:
    given = ENVIRONMENT | {name: os.environ[name] for name in ASKED}
    words = ["chroot", f"--userspec={user}", str(root), *command]
    return subprocess.run(words, env=given, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def clean_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Debian with Python, as the image has it."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("not run: the RUN steps of deploy/Dockerfile (to run them be root, with Debian's debootstrap on PATH)")
    root = tmp_path_factory.mktemp("root")
    command = ["debootstrap", "--variant=minbase", "--include=python3-venv,ca-certificates", "bookworm", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode != 0:
        pytest.skip(f"not run: the RUN steps of deploy/Dockerfile; debootstrap makes no Debian here ({done.stdout[-200:].strip()})")
    root.chmod(0o755)  # pytest's folders are closed to others, and this one is what the image's user sees as /
    certificates = Path(os.environ.get("PIP_CERT", "/nonexistent"))
    if certificates.is_file():  # of this machine's way to the package index
        shutil.copy(certificates, root / "etc/ssl/certs/ca-certificates.crt")
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def base(clean_root: Path, wheel: Path) -> Path:  # noqa: F811
    for step in steps("base"):
        done = in_root(clean_root, "sh", "-c", step)
        assert done.returncode == 0, f"{step}\n{done.stderr}"
    (clean_root / "dist").mkdir()
    shutil.copy(wheel, clean_root / "dist")
    return clean_root


@pytest.mark.skip(
    reason="not run: the stage of deploy/Dockerfile that compiles (it wants an image with Rust); test_wheel.py builds the wheel"
)
def test_the_stage_that_compiles() -> None:
    """Named, so that a run lists it."""


@pytest.mark.parametrize("target", ["edge", "central"])
def test_the_steps_of_the_dockerfile_make_an_emp_pipe_that_its_user_can_start(base: Path, target: str) -> None:
    shutil.rmtree(base / "opt/emp-pipe", ignore_errors=True)
    for step in steps(target):
        done = in_root(base, "sh", "-c", step)
        assert done.returncode == 0, f"{step}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    (user,) = [text for word, text in stage(target) if word == "USER"]
    (entry,) = [json.loads(text) for word, text in stage(target) if word == "ENTRYPOINT"]
    done = in_root(base, *entry, "--print-config", user=user)
    assert done.returncode == 0, done.stderr
    assert f"/var/lib/emp-pipe/{target}" in done.stdout
    done = in_root(base, "sh", "-c", "id -u && touch /var/lib/emp-pipe/x && rm /var/lib/emp-pipe/x && ! touch /opt/emp-pipe/x", user=user)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["10001"]
    assert (base / "var/lib/emp-pipe").stat().st_mode & 0o777 == 0o700
