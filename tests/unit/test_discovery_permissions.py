"""An edge that is not root: what its user may not look into neither stops it nor is passed over in silence. The permissions are real."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine_tree import Machine
from tests.support.nobody import nobody


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine below a folder that everybody may look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="machine-") as folder:
        Path(folder).chmod(0o755)
        yield Machine(Path(folder))


def test_a_home_of_roots_that_may_not_be_looked_into_does_not_stop_it(machine: Machine) -> None:
    machine.has("root/ComfyUI/main.py", "root/.pm2/logs/api-out.log", "workspace/logs/web-out.log")
    (machine.root / "root").chmod(0)
    with nobody():
        assert machine.components() == ["tail/pm2"]
        assert machine.read("tail/pm2") == {"workspace/logs/web-out.log"}
    (machine.root / "root").chmod(0o755)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111], ids=["closed", "only-listed", "only-entered"])
def test_a_folder_of_logs_that_may_not_be_looked_into_is_left_out_and_said(machine: Machine, mode: int) -> None:
    machine.has("var/log/nginx/access.log", "var/log/audit/audit.log", "var/log/app.log")
    closed = [machine.root / "var/log" / name for name in ("nginx", "audit")]
    for folder in closed:
        folder.chmod(mode)
    with nobody():
        assert machine.components() == ["tail/applications"]
        assert machine.read("tail/applications") == {"var/log/app.log"}
        assert machine.left_out() == {
            "var/log/nginx": "it may not be looked into by this user",
            "var/log/audit": "it may not be looked into by this user",
        }
    for folder in closed:
        folder.chmod(0o755)


@pytest.mark.parametrize("closed", ["var/log/journal/0123", "var/log/journal/0123/system.journal"])
def test_a_journal_that_tells_this_user_nothing_is_left_out_and_the_files_are_read(machine: Machine, closed: str) -> None:
    machine.has_program("journalctl")
    machine.has("var/log/journal/0123/system.journal", "var/log/journal/0123/user-1000.journal", "var/log/syslog", "dev/kmsg")
    (machine.root / closed).chmod(0)
    with nobody():
        assert machine.components() == ["kmsg", "tail/system"]
        assert machine.left_out() == {"var/log/journal": "it may not be read by this user: add the user to the group systemd-journal"}
    (machine.root / closed).chmod(0o755)


def test_everything_closed_is_nothing_found_and_no_failure(machine: Machine) -> None:
    machine.has("var/log/app.log", "workspace/logs/api-out.log", "proc/stat", "dev/kmsg", "root/.pm2/pm2.log", "home/x/.pm2/logs/a.log")
    folders = [machine.root / name for name in ("var/log", "workspace", "proc", "dev", "root", "home")]
    for folder in folders:
        folder.chmod(0)
    with nobody():
        assert machine.components() == []
    for folder in folders:
        folder.chmod(0o755)
