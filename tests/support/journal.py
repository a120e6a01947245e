"""Journal files for tests, made by systemd's own program: entries are added, a file is rotated away, journalctl's vacuum removes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BOOT = "0123456789abcdef0123456789abcdef"
_START_US = 1_764_000_000_000_000


def journal_remote() -> tuple[str, dict[str, str]]:
    """Return the program and what it needs in its environment; skip the test where it is not to be had."""
    unpacked = Path(sys.prefix) / "journal-remote"
    for folder in (Path("/lib/systemd"), Path("/usr/lib/systemd"), unpacked / "lib/systemd", unpacked / "usr/lib/systemd"):
        program = folder / "systemd-journal-remote"
        if program.exists() and shutil.which("journalctl"):
            libraries = [str(path.parent) for path in unpacked.glob("usr/lib/*/libmicrohttpd.so.12")]
            return str(program), {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    pytest.skip("not run: there is no journalctl with systemd-journal-remote (tools/journal_remote.sh sees to it)")


class Journal:
    """A directory of journal files."""

    def __init__(self, directory: Path) -> None:
        self._program, self._environment = journal_remote()
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / "remote.journal"
        self._entries = 0
        self._rotations = 0

    def add(self, *messages: str, **fields: str) -> None:
        """Add an entry for each message."""
        text = ""
        for message in messages:
            self._entries += 1
            all_fields = {
                "__REALTIME_TIMESTAMP": str(_START_US + self._entries),
                "__MONOTONIC_TIMESTAMP": str(1000 + self._entries),
                "_BOOT_ID": BOOT,
                "MESSAGE": message,
                "PRIORITY": "6",
                "_TRANSPORT": "stdout",
                "_SYSTEMD_UNIT": "web.service",
                **fields,
            }
            text += "".join(f"{name}={value}\n" for name, value in all_fields.items()) + "\n"
        command = [self._program, "-o", str(self.file), "-"]
        done = subprocess.run(command, input=text.encode(), env=self._environment, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def rotate(self) -> None:
        """Put the file away under an archived file's name; the next entry begins another."""
        self._rotations += 1
        archived = f"remote@{'0' * 31}{self._rotations}-{self._rotations:016x}-{_START_US + self._entries:016x}.journal"
        self.file.rename(self.directory / archived)

    def vacuum(self) -> None:
        """Let journalctl remove what was put away."""
        command = ["journalctl", f"--directory={self.directory}", "--vacuum-files=1"]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in self.directory.glob("*.journal")] == [self.file.name]
