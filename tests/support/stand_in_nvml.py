"""NVML without a GPU: a shared library built from `stand_in_nvml.c`, and the file that says what it answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None,
    reason="not run: without a C compiler there is no stand-in for NVML (to run it put cc on PATH, on Linux)",
)
GIB = 1 << 30
UNINITIALIZED, NOT_SUPPORTED, DRIVER_NOT_LOADED, GPU_IS_LOST, VERSION_MISMATCH, UNKNOWN = 1, 3, 9, 15, 18, 999

WHOLE: Mapping[str, object] = {
    "name": "NVIDIA H100 80GB HBM3",
    "serial": "1654922006536",
    "vbios": "96.00.74.00.01",
    "pci": "00000000:41:00.0",
    "utilization": 57,
    "utilization.memory": 23,
    "encoder": 11,
    "decoder": 7,
    "memory.total": 80 * GIB,
    "memory.used": 20 * GIB,
    "temperature.0": 61,
    "field.82": 72,
    "threshold.1": 89,
    "threshold.0": 92,
    "power": 412_500,
    "power.limit": 700_000,
    "energy": 123_456_000,
    "clock.0": 1980,
    "clock.1": 1975,
    "clock.2": 2619,
    "clock.3": 1545,
    "clock.max.0": 1990,
    "clock.max.1": 1990,
    "clock.max.2": 2619,
    "clock.max.3": 1545,
    "throttle": 0x4 | 0x40,
    "ecc.corrected": 12,
    "ecc.uncorrected": 1,
    "rows.corrected": 3,
    "rows.uncorrected": 2,
    "pcie.throughput.0": 1500,
    "pcie.throughput.1": 2500,
    "pcie.replays": 4,
    "pcie.generation": 4,
    "pcie.generation.max": 5,
    "pcie.width": 8,
    "pcie.width.max": 16,
    "field.197": 111_000,
    "field.198": 222_000,
    "field.138": 1000,
    "field.139": 2000,
    "field.38": 5,
    "field.52": 6,
    "field.59": 7,
    "fans": 2,
    "fan.0": 40,
    "fan.1": 45,
}
"""All that a GPU can have, by the names of `stand_in_nvml.c`."""


class StandInNvml:
    """A library to load, and the file that its answers come from: changed at any time, read anew at every call."""

    def __init__(self, directory: Path, *, reads_once: bool = False) -> None:
        """`reads_once`: what is said after the first call is not heard, and an answer costs less."""
        self.library = directory / "libnvidia-ml.so.1"
        self.file = directory / "stand-in-nvml"
        source = Path(__file__).with_suffix(".c")
        soname = f"-Wl,-soname,{self.library.name}"
        command = [
            "cc",
            *(["-DREAD_ONCE"] if reads_once else []),
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Werror",
            soname,
            "-o",
            str(self.library),
            str(source),
        ]
        subprocess.run(command, check=True, timeout=60)
        self._calls = directory / "calls"
        self.variables = {"STAND_IN_NVML": str(self.file), "STAND_IN_NVML_CALLS": str(self._calls)}
        self._lines: dict[str, object] = {}
        self.has(driver="580.65.06", gpus=0)

    def gpu(self, index: int = 0, **values: object) -> None:
        """There is a GPU with these values, written with `__` for dots; without any: a whole one."""
        named = {name.replace("__", "."): value for name, value in values.items()} or dict(WHOLE)
        self._lines |= {f"gpu.{index}.uuid": f"GPU-{index}"} | {f"gpu.{index}.{name}": value for name, value in named.items()}
        self._lines["gpus"] = max(int(str(self._lines.get("gpus", 0))), index + 1)
        self._write()

    def has(self, **values: object) -> None:
        """From now on these are answered too."""
        self.says({name.replace("__", "."): value for name, value in values.items()})

    def says(self, lines: Mapping[str, object]) -> None:
        self._lines |= lines
        self._write()

    def says_only(self, **values: object) -> None:
        """Everything said before is forgotten, and who called."""
        self._calls.unlink(missing_ok=True)
        self._lines = dict(values)
        self._write()

    def says_no_more(self, *keys: str) -> None:
        for key in keys:
            del self._lines[key]
        self._write()

    def calls(self, function: str) -> int:
        """Return how often a function was called."""
        return self._calls.read_text().split().count(function) if self._calls.exists() else 0

    def _write(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text("".join(f"{key}={value}\n" for key, value in self._lines.items()), "utf-8", "surrogateescape")
        os.replace(new, self.file)
