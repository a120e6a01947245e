"""What it costs to read a machine: host metrics and GPU metrics at their 30 s, on a machine with some hundred processes and eight GPUs.

Readings are made twice a second so that there are enough of them; what a reading costs, by the CPU time of the process tree less that of
the same process with nothing to read, is then what it costs every 30 s. GPUs are a stand-in for NVML, which looks its answers up in a
text: that is in the figure, and the time of a real driver is not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import configs
from bench.figures import Figure, of_pairs
from bench.subjects import Subject, emp_pipe_command, free_ports

_INTERVAL_S = 0.5
_MEASURED_S = 10.0
_SETTLED_AFTER_S = 3.0
_PROCESSES = 300
_GPUS = 8
_EVERY_S = 30.0


def run_host_cost(pairs: int, say: Callable[[str], None]) -> list[Figure]:
    """Share of a core that host metrics take every 30 s, and host and GPU metrics together."""
    figures = []
    with _sleeping(_PROCESSES):
        with_host, with_both = [], []
        for _ in range(min(pairs, 3)):
            nothing_s = _cpu_s({})
            with_host.append(_share(_cpu_s({"host_metrics": {"interval_s": _INTERVAL_S}}) - nothing_s))
            say(f"host metrics: {with_host[-1]:.3f} % of a core")
            if shutil.which("cc") is not None:
                with_both.append(_share(_cpu_s({"host_metrics": {"interval_s": _INTERVAL_S}}, gpus=_GPUS) - nothing_s))
                say(f"host and GPU metrics: {with_both[-1]:.3f} % of a core")
        note = f"{_PROCESSES} processes beside it; per reading, as one every {_EVERY_S:.0f} s"
        figures.append(of_pairs("host_metrics_cpu", "% of a core", with_host, []))
        figures.append(
            of_pairs("host_and_gpu_metrics_cpu", "% of a core", with_both, [])
            if with_both
            else Figure("host_and_gpu_metrics_cpu", None, "", note="not run: no C compiler for the stand-in of NVML")
        )
        for figure in figures:
            if figure.value is not None:
                figure.aim, figure.note = 0.5, note
        if with_both:
            figures[1].note += f"; {_GPUS} GPUs of a stand-in for NVML"
    return figures


def _share(cpu_s: float) -> float:
    """Return the share of a core, in percent, that readings take which cost so much in the time that was measured."""
    return cpu_s / (_MEASURED_S / _INTERVAL_S) / _EVERY_S * 100


def _cpu_s(receivers: dict[str, object], gpus: int = 0) -> float:
    """Return the CPU time of a process with these receivers over the measured time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if gpus:
            receivers = {**receivers, "gpu_metrics": {"interval_s": _INTERVAL_S, "library": _stand_in(folder, gpus)}}
        port, http_port = free_ports(2)
        config = {
            "data_dir": str(folder / "data"),
            "http": {"listen": f"127.0.0.1:{http_port}"},
            "receivers": {"forward": {"listen": f"127.0.0.1:{port}"}, **receivers},
            "exporters": {"noop": {}},
        }
        subject = Subject("emp-pipe", folder)
        subject.start(emp_pipe_command("run", configs.write(folder / "run.yaml", config), [http_port]))
        try:
            time.sleep(_SETTLED_AFTER_S)
            before_s = subject.cpu_s()
            time.sleep(_MEASURED_S)
            subject.check_alive()
            return subject.cpu_s() - before_s
        finally:
            subject.stop()


def _stand_in(folder: Path, gpus: int) -> str:
    from tests.support.stand_in_nvml import StandInNvml

    nvml = StandInNvml(folder, reads_once=True)
    for index in range(gpus):
        nvml.gpu(index)
    os.environ.update(nvml.variables)
    del os.environ["STAND_IN_NVML_CALLS"]  # it would write down every call
    return str(nvml.library)


@contextmanager
def _sleeping(count: int) -> Iterator[None]:
    """Processes that do nothing, as most on a machine do."""
    processes = [subprocess.Popen(["sleep", "600"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
