"""A small disk of its own for a test: a tmpfs, where this machine lets us mount one. It can be filled to its last byte and freed again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted directory and the file that fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    @property
    def free_bytes(self) -> int:
        usage = os.statvfs(self.path)
        return usage.f_bavail * usage.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all that is free, or all but a little."""
        with self._filler.open("ab") as filler:
            while (room := self.free_bytes - leave_bytes) > 0:
                try:
                    os.write(filler.fileno(), bytes(min(room, 1 << 20)))
                except OSError:
                    return

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True, capture_output=True)


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount; the test is skipped, with the reason, where that is not permitted."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"not run: no tmpfs can be mounted ({mounted.stderr.strip()}; to run it be root, in a container with CAP_SYS_ADMIN)")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)
