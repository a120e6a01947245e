"""`emp-pipe` with GPU metrics: the real command, its process that asks NVML, a stand-in library; and the real one where there is a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Running, run, running, until
from tests.support.command_bench import Bench, rows_in
from tests.support.reading import Point, points_of_line
from tests.support.stand_in_nvml import GIB, StandInNvml, needs_compiler

HAS_GPU = Path("/proc/driver/nvidia/version").exists() and any(Path("/dev").glob("nvidia[0-9]*"))


class GpuBench(Bench):
    """A process with GPU metrics before its `file` exporter."""

    def read(self, settings: str) -> None:
        self.write(receivers=f"{{gpu_metrics: {{{settings}}}}}")

    def points(self, name: str, **attributes: Any) -> list[Point]:
        """Return the points of a name so far; attributes with `__` for dots."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        found: list[Point] = []
        for path in sorted(self.data_dir.rglob("metrics*.json*")):
            for line in path.read_bytes().splitlines():
                try:
                    found += points_of_line(json.loads(line))
                except ValueError:
                    continue  # it is being written
        return [point for point in found if point.name == name and wanted.items() <= point.attributes.items()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> StandInNvml:
    return StandInNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(built: StandInNvml) -> StandInNvml:
    built.says_only(driver="580.65.06", gpus=0)
    return built


@pytest.fixture
def bench(tmp_path: Path) -> GpuBench:
    return GpuBench(tmp_path)


@needs_compiler
def test_the_gpus_of_a_machine_reach_the_destination(bench: GpuBench, nvml: StandInNvml) -> None:
    nvml.gpu()
    bench.read(f"interval_s: 0.2, library: {nvml.library}")
    with running(*bench.arguments, **nvml.variables) as command:
        until(lambda: bench.points("hw.gpu.utilization", hw__gpu__task="general"), "utilisation")
        command.process.terminate()
        assert command.wait() == 0
    point = bench.points("hw.gpu.utilization", hw__gpu__task="general")[0]
    assert point.value == pytest.approx(0.57)
    assert point.resource["machine_id"] == "gpu-test"


@needs_compiler
def test_the_loader_finds_the_library_without_a_setting(bench: GpuBench, nvml: StandInNvml) -> None:
    nvml.gpu()
    bench.read("interval_s: 0.2")
    with running(*bench.arguments, LD_LIBRARY_PATH=str(nvml.library.parent), **nvml.variables):
        until(lambda: bench.points("hw.power"), "power")


@needs_compiler
def test_the_interval_is_the_one_that_is_set(bench: GpuBench, nvml: StandInNvml) -> None:
    nvml.gpu()
    bench.read(f"interval_s: 3600, library: {nvml.library}")
    with running(*bench.arguments, **nvml.variables):
        until(lambda: bench.points("hw.power"), "power")
        until(lambda: bench.metric("emp_pipe_reads_total", outcome="ok"), "the reading is counted")
        assert bench.metric("emp_pipe_reads_total", outcome="ok") == 1
    assert len(bench.points("hw.power")) == 1


@contextmanager
def process(**variables: str) -> Iterator[int]:
    """A process of a worker, which knows its worker from what started it."""
    shell = subprocess.Popen(
        ["sh", "-c", "env -u WORKER_ID -u SERVICE_TYPE sleep 600 & echo $!; wait"],
        env={"PATH": os.environ["PATH"], **variables},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert shell.stdout is not None
    try:
        yield int(shell.stdout.readline())
    finally:
        os.killpg(shell.pid, 9)
        shell.wait()
        shell.stdout.close()


@needs_compiler
def test_the_memory_and_utilisation_of_a_process_are_its_workers(bench: GpuBench, nvml: StandInNvml) -> None:
    with process(WORKER_ID="worker-003", SERVICE_TYPE="comfyui", AWS_SECRET_ACCESS_KEY="hidden") as pid:
        nvml.gpu(compute__0=f"{pid},{3 * GIB}", sample__0=f"{pid},100,40,9,6,2")
        bench.read(f"interval_s: 0.2, library: {nvml.library}")
        with running(*bench.arguments, **nvml.variables):
            until(lambda: bench.points("hw.gpu.process.utilization"), "utilisation")
            until(lambda: bench.points("hw.gpu.process.memory.usage", process__executable__name="sleep"), "memory, with the name")
    for name in ("hw.gpu.process.memory.usage", "hw.gpu.process.utilization"):
        point = bench.points(name, process__pid=pid)[0]
        assert point.resource["worker_id"] == "worker-003"
        assert point.resource["service_type"] == "comfyui"
    assert b"hidden" not in b"".join(path.read_bytes() for path in bench.data_dir.rglob("*.jsonl"))


@needs_compiler
def test_a_worker_of_a_gpu_can_be_named_and_the_processes_limited(bench: GpuBench, nvml: StandInNvml) -> None:
    nvml.gpu(1, **{f"compute__{n}": f"{4_194_300 + n},{(n + 1) * GIB}" for n in range(4)})
    bench.read(f"interval_s: 0.2, library: {nvml.library}, most_processes: 2, worker_of_gpu: {{1: worker-009}}")
    with running(*bench.arguments, **nvml.variables):
        until(lambda: bench.points("hw.gpu.process.memory.usage"), "memory")
    points = bench.points("hw.gpu.process.memory.usage")
    assert {point.value for point in points} == {4 * GIB, 3 * GIB}
    assert {point.resource["worker_id"] for point in points} == {"worker-009"}


@needs_compiler
@pytest.mark.parametrize("events", [True, False])
def test_an_xid_is_an_error_event_unless_it_is_switched_off(bench: GpuBench, nvml: StandInNvml, events: bool) -> None:
    nvml.gpu()
    bench.read(f"interval_s: 0.2, library: {nvml.library}, xid_events: {str(events).lower()}")
    with running(*bench.arguments, **nvml.variables):
        until(lambda: nvml.calls("nvmlEventSetWait_v2"), "the events are waited for")
        nvml.says({"xid.1": "gpu.0,48"})
        until(lambda: bench.points("hw.errors", error__type="xid_48"), "it is counted")
        if events:
            until(lambda: rows_in(bench.data_dir), "the event")
    rows = rows_in(bench.data_dir)
    assert [(row["event_type"], row["xid.number"], row["level"]) for row in rows] == ([("error_xid", 48, "error")] if events else [])


@needs_compiler
def test_a_call_that_hangs_is_given_up_after_the_time_that_is_set_and_everything_else_goes_on(bench: GpuBench, nvml: StandInNvml) -> None:
    nvml.gpu()
    nvml.says({"hang.nvmlDeviceGetPowerUsage": 1})
    bench.read(f"interval_s: 0.2, timeout_s: 0.5, library: {nvml.library}")
    with running(*bench.arguments, **nvml.variables) as command:
        until(lambda: bench.metric("emp_pipe_reads_total", component="gpu_metrics", outcome="hung"), "it was given up")
        assert bench.get("/readyz")[0] == 200
        command.process.terminate()
        assert command.wait() == 0
    assert len(_said(command, "NVML did not answer within")) == 1


@needs_compiler
def test_the_process_that_asks_nvml_dies_with_the_edge(bench: GpuBench, nvml: StandInNvml) -> None:
    """Also when the edge is killed, and a call hangs."""
    nvml.gpu()
    bench.read(f"interval_s: 0.2, timeout_s: 600, library: {nvml.library}")
    nvml.says({"hang.nvmlDeviceGetPowerUsage": 1})
    with running(*bench.arguments, **nvml.variables) as command:
        until(lambda: nvml.calls("nvmlDeviceGetPowerUsage"), "the call hangs")
        (child,) = _children(command.process.pid)
        command.process.kill()
        command.process.wait()
        until(lambda: not _runs(child), "the process has ended")


def _said(command: Running, part: str) -> list[str]:
    return [message for message in command.messages() if part in message]


def _children(pid: int) -> list[int]:
    return [int(child) for tasks in Path(f"/proc/{pid}/task").iterdir() for child in (tasks / "children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_machine_without_a_driver_says_so_in_one_line_and_runs(bench: GpuBench) -> None:
    if HAS_GPU:
        pytest.skip("not run: this machine has a GPU")
    bench.read("interval_s: 0.1")
    with running(*bench.arguments, LD_LIBRARY_PATH="") as command:
        command.wait_for("no NVIDIA driver here")
        assert bench.get("/readyz")[0] == 200
        command.process.terminate()
        assert command.wait() == 0
    assert len(_said(command, "no NVIDIA driver here")) == 1


def test_every_setting_is_shown(bench: GpuBench) -> None:
    bench.read("interval_s: 12, timeout_s: 4, library: /opt/nvml.so, most_processes: 3, worker_of_gpu: {0: w}, xid_events: false")
    shown = run(*bench.arguments, "--print-config").stdout
    for line in (
        "interval_s: 12",
        "timeout_s: 4",
        "library: /opt/nvml.so",
        "most_processes: 3",
        "xid_events: false",
        "worker_of_gpu:",
        '  "0": w',
    ):
        assert f"    {line}" in shown, shown


@pytest.mark.parametrize(
    ("setting", "said"), [("most_processes: -1", "most_processes"), ("librray: x", "library"), ("interval_s: 0", "interval_s")]
)
def test_a_wrong_setting_is_named(bench: GpuBench, setting: str, said: str) -> None:
    bench.read(setting)
    refused = run("validate", str(bench.file))
    assert refused.returncode == 2
    assert said in refused.stderr


@pytest.mark.skipif(not HAS_GPU, reason="not run: no NVIDIA GPU here (to run it take a machine with one)")
def test_a_real_gpu_is_read(bench: GpuBench) -> None:
    bench.read("interval_s: 1")
    with running(*bench.arguments):
        until(lambda: bench.points("hw.gpu.memory.limit"), "its memory")
    assert bench.points("hw.status", hw__state="ok")[0].value == 1
    if smi := shutil.which("nvidia-smi"):
        listed = subprocess.run([smi, "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, timeout=60, check=True)
        assert {str(point.attributes["hw.id"]) for point in bench.points("hw.power")} <= set(listed.stdout.split())
