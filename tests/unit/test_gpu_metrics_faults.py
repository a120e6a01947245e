"""NVML that is not there, fails, crashes or loses a GPU: said once, and all else goes on. Its process and nvidia-ml-py are real."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.receivers import gpu_metrics
from tests.support.gpu_metrics import Bench, said, until
from tests.support.stand_in_nvml import GPU_IS_LOST, UNINITIALIZED, UNKNOWN, VERSION_MISMATCH, StandInNvml, needs_compiler

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


# --- no driver ------------------------------------------------------------------------------------------------


async def test_a_machine_without_the_library_costs_one_line(
    nvml: StandInNvml, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(gpu_metrics, "_LOOK_AGAIN_S", 0.0)
    bench = Bench(nvml, library=str(nvml.library) + ".not-there")
    async with bench.running():
        await until(lambda: bench.counted("reads", outcome="failed") >= 3, "it looked three times")
    assert len(said(caplog, "no NVIDIA driver here (library_not_found)", logging.INFO)) == 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert bench.kept.arrivals == []


async def test_without_a_driver_it_is_looked_for_at_a_slow_pace(nvml: StandInNvml) -> None:
    nvml.says_no_more("gpus")
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.counted("reads", outcome="failed"), "it looked once")
        await asyncio.sleep(0.5)  # ten intervals
    assert bench.counted("reads", outcome="failed") == 1


async def test_a_driver_that_is_loaded_later_is_found(
    nvml: StandInNvml, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(gpu_metrics, "_LOOK_AGAIN_S", 0.0)
    nvml.says_no_more("gpus")
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: said(caplog, "no NVIDIA driver here (driver_not_loaded)", logging.INFO), "the line")
        nvml.gpu()
        await until(lambda: bench.state() == "ok", "the GPU is read")
    assert said(caplog, "the GPUs answer again", logging.INFO)


# --- errors -----------------------------------------------------------------------------------------------------


async def test_a_call_that_answers_an_error_costs_its_value_alone(nvml: StandInNvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.gpu()
    nvml.says({"error.nvmlDeviceGetPowerUsage": UNKNOWN})
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.counted("reads", outcome="ok") >= 3, "three readings")
    assert bench.now("hw.power") is None
    assert bench.now("hw.power.limit") is not None
    assert bench.state() == "degraded"
    assert len(said(caplog, "NVML's PowerUsage answers unknown; the rest is read")) == 1


@pytest.mark.parametrize(
    "function",
    [
        *("UtilizationRates", "MemoryInfo", "FieldValues", "ComputeRunningProcesses_v3", "ProcessUtilization"),
        *("MigMode", "RemappedRows", "NumFans"),
    ],
)
async def test_whatever_call_fails_the_others_are_told(nvml: StandInNvml, function: str) -> None:
    nvml.gpu()
    nvml.says({f"error.nvmlDeviceGet{function}": UNKNOWN})
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.counted("reads", outcome="ok"), "a reading")
    assert bench.state() == "degraded"
    assert bench.now("hw.energy") is not None


async def test_a_name_that_is_no_text_does_no_harm(nvml: StandInNvml) -> None:
    nvml.gpu(name=b"H100 \xff".decode("utf-8", "surrogateescape"), power=1000)
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.now("hw.power"), "a reading")


async def test_a_lost_gpu_is_said_once_and_the_other_is_told(nvml: StandInNvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.gpu(0)
    nvml.gpu(1)
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.state() == bench.state("GPU-1") == "ok", "both are read")
        nvml.says({"error.all.gpu.1": GPU_IS_LOST})
        await until(lambda: bench.state("GPU-1") == "failed", "it is failed")
        before = bench.counted("reads", outcome="ok")
        await until(lambda: bench.counted("reads", outcome="ok") > before + 2, "more readings")
        assert bench.state() == "ok"
        assert len(said(caplog, "gpu1 (NVIDIA H100 80GB HBM3, 0000:41:00) is lost: gpu_is_lost")) == 1
        nvml.says_no_more("error.all.gpu.1")
        await until(lambda: bench.state("GPU-1") == "ok", "it is back")
        await until(lambda: bench.events("custom_gpu_found"), "the event")
    (lost,) = bench.events("error_gpu_lost")
    assert (lost["hw.id"], lost["gpu.index"], lost["level"]) == ("GPU-1", 1, "error")
    assert [event["hw.id"] for event in bench.events("custom_gpu_found")] == ["GPU-1"]


async def test_a_gpu_that_is_lost_in_the_middle_of_a_reading_is_failed_whole(nvml: StandInNvml) -> None:
    nvml.gpu()
    nvml.says({"error.nvmlDeviceGetPowerUsage": GPU_IS_LOST})
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.state() == "failed", "it is failed")
    assert bench.now("hw.gpu.utilization") is None


async def test_a_gpu_that_is_not_listed_any_more_is_failed(nvml: StandInNvml) -> None:
    nvml.gpu(0)
    nvml.gpu(1)
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.state("GPU-1") == "ok", "it is read")
        nvml.has(gpus=1)
        await until(lambda: bench.state("GPU-1") == "failed", "it is failed")
        await until(lambda: bench.events("error_gpu_lost"), "the event")
        assert bench.state() == "ok"


async def test_a_gpu_that_appears_is_read(nvml: StandInNvml) -> None:
    nvml.gpu(0)
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.state() == "ok", "the first is read")
        nvml.gpu(1)
        await until(lambda: bench.state("GPU-1") == "ok", "the second is read")


@pytest.mark.parametrize(("code", "word"), [(UNINITIALIZED, "uninitialized"), (VERSION_MISMATCH, "lib_rm_version_mismatch")])
async def test_a_driver_that_is_loaded_anew_is_met_with_a_new_process(
    nvml: StandInNvml, caplog: pytest.LogCaptureFixture, code: int, word: str
) -> None:
    caplog.set_level(logging.INFO)
    nvml.gpu()
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.state() == "ok", "it is read")
        first = bench.receiver._nvml.pid
        nvml.says({"error.nvmlDeviceGetCount_v2": code})
        await until(lambda: bench.state() == "failed", "it is failed")
        nvml.says_no_more("error.nvmlDeviceGetCount_v2")
        await until(lambda: bench.state() == "ok", "it is read again")
        assert bench.receiver._nvml.pid not in (first, None)
    assert len(said(caplog, f"the NVIDIA driver does not serve NVML ({word})")) == 1
    assert said(caplog, "the GPUs answer again", logging.INFO)


async def test_a_driver_that_ends_the_process_is_said_once_and_tried_again(nvml: StandInNvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.gpu()
    nvml.says({"crash.nvmlDeviceGetPowerUsage": 1})
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.counted("reads", outcome="failed") >= 2, "two processes ended")
        nvml.says_no_more("crash.nvmlDeviceGetPowerUsage")
        await until(lambda: bench.state() == "ok", "it is read")
    assert len(said(caplog, "was ended by SIGSEGV")) == 1


# --- Xid ------------------------------------------------------------------------------------------------------------


async def test_an_xid_is_an_event_at_once_and_is_counted(nvml: StandInNvml) -> None:
    nvml.gpu()
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.state() == "ok", "it is read")
        await until(lambda: _watches(nvml), "the events are waited for")
        nvml.says({"xid.1": "gpu.0,79", "xid.2": "gpu.0,79", "xid.3": "gpu.0,31"})
        await until(lambda: len(bench.events("error_xid")) == 3, "three events")
        await until(lambda: (point := bench.now("hw.errors", **{"error.type": "xid_79"})) and point.value == 2, "two are counted")
        point = bench.now("hw.errors", **{"error.type": "xid_31", "hw.id": "GPU-0"})
    assert point is not None
    assert (point.value, point.kind, point.attributes["hw.type"]) == (1, "counter", "gpu")
    assert 0 < point.start_unix_nano < point.time_unix_nano
    first = bench.events("error_xid")[0]
    assert (first["hw.id"], first["gpu.index"], first["xid.number"], first["xid.pci_address"]) == ("GPU-0", 0, 79, "0000:41:00")
    assert first["level"] == "error"
    assert first["message"] == "gpu0 (NVIDIA H100 80GB HBM3, 0000:41:00) reports Xid 79: the GPU has fallen off the bus"
    assert "power-cycle the machine" in first["xid.action"]


def _watches(nvml: StandInNvml) -> bool:
    return nvml.calls("nvmlEventSetWait_v2") > 0


async def test_an_xid_of_an_instance_names_it(nvml: StandInNvml) -> None:
    nvml.gpu()
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: _watches(nvml), "the events are waited for")
        nvml.says({"xid.1": "gpu.0,94,5"})
        await until(lambda: bench.events("error_xid"), "the event")
    assert bench.events("error_xid")[0]["xid.mig_instance"] == 5


async def test_xids_can_be_counted_without_events(nvml: StandInNvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.gpu()
    bench = Bench(nvml, xid_events=False)
    async with bench.running():
        await until(lambda: _watches(nvml), "the events are waited for")
        nvml.says({"xid.1": "gpu.0,79"})
        await until(lambda: bench.now("hw.errors", **{"error.type": "xid_79"}), "it is counted")
    assert bench.events("error_xid") == []
    assert said(caplog, "gpu0 (NVIDIA H100 80GB HBM3, 0000:41:00) reports Xid 79")


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2"])
async def test_where_events_fail_the_metrics_are_read_all_the_same(nvml: StandInNvml, function: str) -> None:
    nvml.gpu()
    nvml.says({f"error.{function}": UNKNOWN})
    bench = Bench(nvml)
    async with bench.running():
        await until(lambda: bench.counted("reads", outcome="ok") >= 3, "three readings")
        assert bench.state() == "ok"


async def test_an_event_that_could_not_be_kept_is_offered_again(nvml: StandInNvml) -> None:
    nvml.gpu()
    bench = Bench(nvml, interval_s=3600)
    async with bench.running():
        await bench.kept.wait_for(1)
        await until(lambda: _watches(nvml), "the events are waited for")
        bench.kept.refuse.append(LogError(ErrorKind.LOG_FULL))
        nvml.says({"xid.1": "gpu.0,79"})
        await until(lambda: bench.events("error_xid"), "the event")
    assert bench.kept.refuse == []


async def test_events_that_too_many_wait_before_or_that_a_stop_leaves_are_counted_and_said(
    nvml: StandInNvml, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_metrics, "_MOST_WAITING_EVENTS", 2)
    nvml.gpu()
    bench = Bench(nvml, interval_s=3600)
    async with bench.running():
        await bench.kept.wait_for(1)
        await until(lambda: _watches(nvml), "the events are waited for")
        bench.kept.refuse += [LogError(ErrorKind.LOG_FULL)] * 1000
        before = bench.kept.offered
        nvml.says({"xid.1": "gpu.0,79"})
        await until(lambda: bench.kept.offered > before, "the first is offered")
        nvml.says({f"xid.{number}": f"gpu.0,{number}" for number in range(2, 7)})
        await until(lambda: bench.counted("gpu_events_left_out") == 3, "two wait, three cannot")
    assert len(said(caplog, "events of GPUs are left out: 2 wait to be kept")) == 1
    assert bench.counted("gpu_events_left_out") == 6
    assert said(caplog, "3 events of GPUs were not kept before the stop")


async def test_a_stop_keeps_the_events_that_it_can(nvml: StandInNvml) -> None:
    nvml.gpu()
    bench = Bench(nvml, interval_s=3600)
    async with bench.running():
        await bench.kept.wait_for(1)
        await until(lambda: _watches(nvml), "the events are waited for")
        nvml.says({"xid.1": "gpu.0,79"})
        await until(lambda: bench.receiver._xids, "it is counted")
    assert len(bench.events("error_xid")) == 1
    assert bench.counted("gpu_events_left_out") == 0
