"""Sets the wall clock of processes while they run, as an administrator or NTP does: a shim that is preloaded (`wall_clock.c`).

Everything in the process is told the other time: Python, the native core, SQLite, redis-server. Monotonic clocks are not touched, and
neither are clocks that a program reads without libc.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None,
    reason="not run: without a C compiler no clock can be set (to run it put cc on PATH, on Linux)",
)


class WallClock:
    """One clock for all processes that are started with its `variables`."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "wall-clock"
        self._file.write_bytes(struct.pack("=q", 0))
        library = directory / "wall_clock.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True, timeout=60)
        self.variables = {"LD_PRELOAD": str(library), "WALL_CLOCK_FILE": str(self._file)}
        self._by_ns = 0

    def set_by(self, seconds: float) -> None:
        """From now on it is so many seconds ahead of the machine's."""
        self._by_ns = int(seconds * 1e9)
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", self._by_ns))

    def unix_nano(self) -> int:
        """Return what it says."""
        return time.time_ns() + self._by_ns
