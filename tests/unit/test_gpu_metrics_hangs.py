"""A call into the driver that hangs, and the process that asks: given up, left behind, and never waited for."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from emp_pipe.receivers import gpu_metrics_process
from emp_pipe.receivers.gpu_metrics_process import NvmlFailure, NvmlProcess
from tests.support.gpu_metrics import PATIENCE_S, Bench, said, until
from tests.support.stand_in_nvml import StandInNvml, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> StandInNvml:
    return StandInNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(built: StandInNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInNvml]:
    built.says_only(driver="580.65.06", gpus=0)
    for name, value in built.variables.items():
        monkeypatch.setenv(name, value)
    yield built
    built.says_only()  # what hangs goes on, and ends


@pytest.mark.parametrize("function", ["nvmlDeviceGetPowerUsage", "nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
async def test_a_call_that_hangs_is_given_up_and_the_gpus_are_read_when_it_is_over(
    nvml: StandInNvml, caplog: pytest.LogCaptureFixture, function: str
) -> None:
    caplog.set_level(logging.INFO)
    nvml.gpu()
    nvml.says({f"hang.{function}": 1})
    bench = Bench(nvml, timeout_s=0.5)
    async with bench.running():
        await until(lambda: bench.counted("reads", outcome="hung") >= 2, "two were given up")
        assert len(said(caplog, "NVML did not answer within")) == 1
        nvml.says_no_more(f"hang.{function}")
        # Patient from here on: the machine may be slow.
        bench.receiver.config = bench.receiver.config.model_copy(update={"timeout_s": 20.0})
        await until(lambda: bench.state() == "ok", "it is read")
    assert said(caplog, "the GPUs answer again", logging.INFO)


async def test_while_a_call_hangs_the_gpus_that_were_here_are_failed(nvml: StandInNvml) -> None:
    nvml.gpu()
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.state() == "ok", "it is read")
        bench.receiver.config = bench.receiver.config.model_copy(update={"timeout_s": 0.2})
        nvml.says({"hang.nvmlDeviceGetMemoryInfo": 1})
        await until(lambda: bench.state() == "failed", "it is failed")


async def test_a_call_that_hangs_does_not_hold_up_the_stop(nvml: StandInNvml) -> None:
    nvml.gpu()
    nvml.says({"hang.nvmlDeviceGetPowerUsage": 1})
    bench = Bench(nvml, timeout_s=600.0)
    began_s = asyncio.get_running_loop().time()
    async with bench.running():
        await until(lambda: bench.receiver._nvml.pid, "the process is there")
        pid = bench.receiver._nvml.pid
    assert asyncio.get_running_loop().time() - began_s < 60, "the stop waited for the call"
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_ends_with_the_edge_also_while_a_call_hangs(nvml: StandInNvml) -> None:
    nvml.gpu()
    nvml.says({"hang.nvmlDeviceGetPowerUsage": 1})
    command = NvmlProcess(str(nvml.library), print).command()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"read\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.stdin.close()  # the edge is killed: its end of the pipe goes
    try:
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()


class Undying:
    """A process that hangs in the driver where no signal reaches it."""

    pid = 4242
    returncode: int | None = None
    stdin: Any = None
    stdout: Any = None

    def __init__(self) -> None:
        self.stdin, self.stdout = self, asyncio.StreamReader()
        self.killed = 0
        self.died = asyncio.Event()

    def write(self, data: bytes) -> None: ...

    def kill(self) -> None:
        self.killed += 1

    async def wait(self) -> int:
        await self.died.wait()
        self.returncode = -9
        return -9


async def test_a_process_that_cannot_be_ended_is_left_and_no_second_one_is_begun_beside_it(
    nvml: StandInNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_metrics_process, "_DEATH_S", 0.05)
    begun: list[Undying] = []
    start = asyncio.create_subprocess_exec

    async def begin(*command: Any, **how: Any) -> Any:
        begun.append(Undying())
        return begun[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", begin)
    process = NvmlProcess(str(nvml.library), print)
    with pytest.raises(NvmlFailure) as hung:
        await process.read(0.05)
    assert hung.value.kind == "hung"
    for _ in range(3):
        with pytest.raises(NvmlFailure) as still:
            await process.read(0.05)
        assert still.value.kind == "still_hangs"
    assert [(one.killed, one.returncode) for one in begun] == [(1, None)]

    begun[0].returncode = -9  # the driver let go of it
    nvml.gpu()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    assert [gpu["uuid"] for gpu in (await process.read(20.0))["gpus"]] == ["GPU-0"]
    await process.close()


class Babbling(NvmlProcess):
    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", "print('no JSON', flush=True); input(); input()"]


async def test_what_is_no_answer_ends_the_process(nvml: StandInNvml) -> None:
    process = Babbling("", print)
    with pytest.raises(NvmlFailure) as failure:
        await process.read(20.0)
    assert "wrote what is no answer" in str(failure.value)
    assert process.pid is None


async def test_the_process_inherits_nothing_of_the_edges(nvml: StandInNvml) -> None:
    """An unkillable process keeps what it has open: a port or a buffer's lock of the edge would be kept with it."""
    nvml.gpu()
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    process = NvmlProcess(str(nvml.library), print)
    await process.read(20.0)
    ours = os.fstat(write_end)
    open_there = {os.stat(f"/proc/{process.pid}/fd/{fd}").st_ino for fd in os.listdir(f"/proc/{process.pid}/fd")}
    assert ours.st_ino not in open_there
    await process.close()
    os.close(read_end)
    os.close(write_end)
