"""What one GPU says, item by item: asked through the real nvidia-ml-py and its process, of a stand-in library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.receivers.gpu_metrics import GpuMetricsConfig, GpuMetricsReceiver
from emp_pipe.receivers.gpu_metrics_points import THROTTLES
from tests.support.context import make_context
from tests.support.reading import Kept, Point, receiving
from tests.support.stand_in_nvml import GIB, StandInNvml, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> StandInNvml:
    return StandInNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(built: StandInNvml, monkeypatch: pytest.MonkeyPatch) -> StandInNvml:
    built.says_only(driver="580.65.06", gpus=0)
    for name, value in built.variables.items():
        monkeypatch.setenv(name, value)
    return built


async def read(nvml: StandInNvml, **settings: Any) -> list[Point]:
    """Return the points of one reading."""
    config = GpuMetricsConfig(library=str(nvml.library), interval_s=3600, **settings)
    kept = Kept()
    async with receiving(GpuMetricsReceiver("gpu_metrics", config, make_context()), kept):
        await kept.wait_for(1)
    return kept.points()


_OWN_NAME = Path("/proc/self/comm").read_text().strip()
_PCIE, _NVLINK = {"hw.gpu.interconnect": "pcie"}, {"hw.gpu.interconnect": "nvlink"}
_OUT, _IN = {"network.io.direction": "transmit"}, {"network.io.direction": "receive"}
ITEMS: dict[str, tuple[str, dict[str, Any], str, float, str]] = {
    "utilisation": ("hw.gpu.utilization", {"hw.gpu.task": "general"}, "1", 0.57, "gauge"),
    "utilisation of the encoder": ("hw.gpu.utilization", {"hw.gpu.task": "encoder"}, "1", 0.11, "gauge"),
    "utilisation of the decoder": ("hw.gpu.utilization", {"hw.gpu.task": "decoder"}, "1", 0.07, "gauge"),
    "utilisation of the memory's controller": ("hw.gpu.memory.controller.utilization", {}, "1", 0.23, "gauge"),
    "memory used": ("hw.gpu.memory.usage", {}, "By", 20 * GIB, "up_down_counter"),
    "memory": ("hw.gpu.memory.limit", {}, "By", 80 * GIB, "up_down_counter"),
    "share of memory used": ("hw.gpu.memory.utilization", {}, "1", 0.25, "gauge"),
    "temperature": ("hw.temperature", {"hw.sensor_location": "gpu"}, "Cel", 61, "gauge"),
    "temperature of the memory": ("hw.temperature", {"hw.sensor_location": "memory"}, "Cel", 72, "gauge"),
    "temperature at which it slows down": ("hw.temperature.limit", {"hw.limit_type": "high.degraded"}, "Cel", 89, "gauge"),
    "temperature at which it shuts down": ("hw.temperature.limit", {"hw.limit_type": "high.critical"}, "Cel", 92, "gauge"),
    "power": ("hw.power", {"hw.type": "gpu"}, "W", 412.5, "gauge"),
    "power limit": ("hw.power.limit", {"hw.type": "gpu"}, "W", 700, "gauge"),
    "energy": ("hw.energy", {"hw.type": "gpu"}, "J", 123_456, "counter"),
    "clock of the graphics engine": ("hw.gpu.clock.frequency", {"hw.gpu.clock": "graphics"}, "Hz", 1.98e9, "gauge"),
    "clock of the multiprocessors": ("hw.gpu.clock.frequency", {"hw.gpu.clock": "sm"}, "Hz", 1.975e9, "gauge"),
    "clock of the memory": ("hw.gpu.clock.frequency", {"hw.gpu.clock": "memory"}, "Hz", 2.619e9, "gauge"),
    "clock of the video engine": ("hw.gpu.clock.frequency", {"hw.gpu.clock": "video"}, "Hz", 1.545e9, "gauge"),
    "highest clock": ("hw.gpu.clock.frequency.limit", {"hw.gpu.clock": "graphics"}, "Hz", 1.99e9, "gauge"),
    "ECC errors corrected": ("hw.errors", {"error.type": "corrected", "hw.type": "gpu"}, "{error}", 12, "counter"),
    "ECC errors not corrected": ("hw.errors", {"error.type": "uncorrected", "hw.type": "gpu"}, "{error}", 1, "counter"),
    "rows remapped": ("hw.gpu.memory.remapped_rows", {"error.type": "uncorrected"}, "{row}", 2, "up_down_counter"),
    "PCIe bytes sent": ("hw.gpu.io", {**_PCIE, **_OUT}, "By", 111_000, "counter"),
    "PCIe bytes received": ("hw.gpu.io", {**_PCIE, **_IN}, "By", 222_000, "counter"),
    "PCIe throughput out": ("hw.gpu.pcie.throughput", {"network.io.direction": "transmit"}, "By/s", 1_500_000, "gauge"),
    "PCIe throughput in": ("hw.gpu.pcie.throughput", {"network.io.direction": "receive"}, "By/s", 2_500_000, "gauge"),
    "PCIe replays": ("hw.errors", {"error.type": "pcie_replay"}, "{error}", 4, "counter"),
    "PCIe generation": ("hw.gpu.pcie.link.generation", {}, "1", 4, "gauge"),
    "best PCIe generation": ("hw.gpu.pcie.link.generation.limit", {}, "1", 5, "gauge"),
    "PCIe lanes": ("hw.gpu.pcie.link.width", {}, "{lane}", 8, "gauge"),
    "most PCIe lanes": ("hw.gpu.pcie.link.width.limit", {}, "{lane}", 16, "gauge"),
    "NVLink bytes sent": ("hw.gpu.io", {**_NVLINK, **_OUT}, "By", 1_024_000, "counter"),
    "NVLink bytes received": (
        "hw.gpu.io",
        {**_NVLINK, **_IN},
        "By",
        2_048_000,
        "counter",
    ),
    "NVLink checksum errors": ("hw.errors", {"error.type": "nvlink_crc"}, "{error}", 5, "counter"),
    "NVLink replays": ("hw.errors", {"error.type": "nvlink_replay"}, "{error}", 6, "counter"),
    "NVLink recoveries": ("hw.errors", {"error.type": "nvlink_recovery"}, "{error}", 7, "counter"),
    "first fan": ("hw.fan.speed_ratio", {"hw.name": "gpu0 fan/0"}, "1", 0.4, "gauge"),
    "second fan": ("hw.fan.speed_ratio", {"hw.name": "gpu0 fan/1"}, "1", 0.45, "gauge"),
    "state": ("hw.status", {"hw.state": "ok", "hw.type": "gpu"}, "1", 1, "up_down_counter"),
    "not lost": ("hw.status", {"hw.state": "failed", "hw.type": "gpu"}, "1", 0, "up_down_counter"),
}


def found(points: list[Point], name: str, **attributes: Any) -> list[Point]:
    return [point for point in points if point.name == name and attributes.items() <= point.attributes.items()]


def one(points: list[Point], name: str, **attributes: Any) -> Point:
    matching = found(points, name, **attributes)
    assert len(matching) == 1, f"{name} {attributes}: {matching}"
    return matching[0]


_once: dict[str, list[Point]] = {}
"""Readings that several tests look at."""


@pytest.mark.parametrize("item", ITEMS)
async def test_every_value_of_a_gpu_is_told_in_the_conventions_unit(nvml: StandInNvml, item: str) -> None:
    nvml.gpu()
    name, attributes, unit, value, kind = ITEMS[item]
    if "whole" not in _once:
        _once["whole"] = await read(nvml)
    point = one(_once["whole"], name, **attributes)
    assert (point.unit, point.kind) == (unit, kind)
    assert point.value == pytest.approx(value)


async def test_the_items_above_are_all_that_a_gpu_says(nvml: StandInNvml) -> None:
    nvml.gpu()
    told = {point.name for point in await read(nvml)}
    assert told == {name for name, *_ in ITEMS.values()} | {"hw.gpu.throttled"}


@pytest.mark.parametrize("index", range(len(THROTTLES)), ids=THROTTLES)
async def test_each_reason_to_throttle_is_a_state_of_its_own(nvml: StandInNvml, index: int) -> None:
    for gpu, bit in enumerate(THROTTLES.values()):
        nvml.gpu(gpu, throttle=bit)
    if "throttles" not in _once:
        _once["throttles"] = await read(nvml)
    points = found(_once["throttles"], "hw.gpu.throttled", **{"gpu.index": index})
    told = {str(point.attributes["hw.gpu.throttle.reason"]): point.value for point in points}
    assert told == {name: float(name == list(THROTTLES)[index]) for name in THROTTLES}


async def test_an_older_driver_is_asked_for_throttle_reasons_by_their_older_name(nvml: StandInNvml) -> None:
    nvml.gpu(throttle__old=THROTTLES["sw_power_cap"])
    assert one(await read(nvml), "hw.gpu.throttled", **{"hw.gpu.throttle.reason": "sw_power_cap"}).value == 1


async def test_a_newer_driver_is_asked_for_the_temperature_by_its_newer_name(nvml: StandInNvml) -> None:
    nvml.gpu(temperature__new=66)
    assert one(await read(nvml), "hw.temperature").value == 66


async def test_a_gpu_says_who_it_is(nvml: StandInNvml) -> None:
    nvml.gpu(1)
    nvml.gpu(0)
    assert one(await read(nvml), "hw.gpu.memory.usage", **{"hw.id": "GPU-1"}).attributes == {
        "hw.id": "GPU-1",
        "hw.name": "gpu1",
        "hw.vendor": "NVIDIA",
        "hw.model": "NVIDIA H100 80GB HBM3",
        "hw.serial_number": "1654922006536",
        "hw.firmware_version": "96.00.74.00.01",
        "hw.driver_version": "580.65.06",
        "gpu.index": 1,
    }


async def test_a_sensor_is_a_part_of_its_gpu(nvml: StandInNvml) -> None:
    nvml.gpu()
    attributes = one(await read(nvml), "hw.temperature", **{"hw.sensor_location": "memory"}).attributes
    assert (attributes["hw.id"], attributes["hw.parent"], attributes["hw.type"]) == ("GPU-0/temperature/memory", "GPU-0", "temperature")


async def test_every_reading_is_of_this_machine(nvml: StandInNvml) -> None:
    nvml.gpu()
    assert {point.resource["machine_id"] for point in await read(nvml)} == {"gpu-test"}


async def test_what_a_gpu_does_not_have_is_left_out_and_is_no_failure(nvml: StandInNvml) -> None:
    nvml.gpu(memory__total=GIB, memory__used=GIB // 2)
    points = await read(nvml)
    assert {point.name for point in points} == {"hw.status", "hw.gpu.memory.limit", "hw.gpu.memory.usage", "hw.gpu.memory.utilization"}
    assert one(points, "hw.status", **{"hw.state": "ok"}).value == 1


async def test_an_instance_of_mig_is_a_component_of_its_own_below_its_gpu(nvml: StandInNvml) -> None:
    nvml.gpu(memory__total=80 * GIB, memory__used=9 * GIB, mig=1, mig__most=7)
    instance = {"uuid": "MIG-a", "name": "H100 1g.10gb", "instance": 7, "compute_instance": 0, "multiprocessors": 16}
    nvml.says({f"gpu.0.mig.2.{key}": value for key, value in instance.items()})
    nvml.says({"gpu.0.mig.2.memory.total": 10 * GIB, "gpu.0.mig.2.memory.used": 4 * GIB, "gpu.0.mig.2.compute.0": f"{os.getpid()},{GIB}"})
    points = await read(nvml)
    attributes = one(points, "hw.gpu.mig.multiprocessors").attributes
    assert one(points, "hw.gpu.mig.multiprocessors").value == 16
    assert (attributes["hw.id"], attributes["hw.parent"], attributes["hw.name"]) == ("MIG-a", "GPU-0", "gpu0/mig2")
    assert (attributes["hw.gpu.mig.gpu_instance"], attributes["hw.gpu.mig.compute_instance"]) == (7, 0)
    assert one(points, "hw.gpu.memory.usage", **{"hw.id": "MIG-a"}).value == 4 * GIB
    assert one(points, "hw.gpu.memory.limit", **{"hw.id": "MIG-a"}).value == 10 * GIB
    assert one(points, "hw.gpu.memory.utilization", **{"hw.id": "MIG-a"}).value == pytest.approx(0.4)
    assert one(points, "hw.gpu.process.memory.usage", **{"hw.id": "MIG-a"}).value == GIB


async def test_a_gpu_whose_mig_is_off_has_no_instances(nvml: StandInNvml) -> None:
    nvml.gpu(memory__total=GIB, memory__used=0, mig=0, mig__most=7)
    nvml.says({"gpu.0.mig.0.uuid": "MIG-a", "gpu.0.mig.0.memory.total": GIB, "gpu.0.mig.0.memory.used": 0})
    assert {point.attributes["hw.id"] for point in await read(nvml)} == {"GPU-0"}


async def test_a_counter_that_fell_began_anew(nvml: StandInNvml) -> None:
    """As after the driver was loaded anew."""
    nvml.gpu(ecc__corrected=12, ecc__uncorrected=0)
    kept = Kept()
    config = GpuMetricsConfig(library=str(nvml.library), interval_s=0.05)
    async with receiving(GpuMetricsReceiver("gpu_metrics", config, make_context()), kept):
        await kept.wait_for(1)
        nvml.gpu(ecc__corrected=3, ecc__uncorrected=0)
        while found(kept.points(), "hw.errors", **{"error.type": "corrected"})[-1].value != 3:
            await kept.wait_for(len(kept.arrivals) + 1)
    told = found(kept.points(), "hw.errors", **{"error.type": "corrected"})
    before, after = next(p for p in told if p.value == 12), next(p for p in told if p.value == 3)
    assert before.start_unix_nano < before.time_unix_nano <= after.start_unix_nano < after.time_unix_nano


# --- processes ----------------------------------------------------------------------------------------------


async def test_the_memory_of_a_process_is_told_with_its_name(nvml: StandInNvml) -> None:
    nvml.gpu(compute__0=f"{os.getpid()},{3 * GIB}", graphics__0=f"{os.getpid()},{GIB}")
    points = await read(nvml)
    compute = one(points, "hw.gpu.process.memory.usage", **{"hw.gpu.process.kind": "compute"})
    assert (compute.value, compute.unit, compute.kind) == (3 * GIB, "By", "up_down_counter")
    assert compute.attributes["process.pid"] == os.getpid()
    assert compute.attributes["process.executable.name"] == _OWN_NAME
    assert compute.attributes["hw.name"] == "gpu0"
    assert one(points, "hw.gpu.process.memory.usage", **{"hw.gpu.process.kind": "graphics"}).value == GIB


async def test_the_utilisation_of_a_process_is_the_mean_of_what_was_sampled_since_the_last_reading(nvml: StandInNvml) -> None:
    pid = os.getpid()
    nvml.gpu(compute__0=f"{pid},{GIB}", sample__0=f"{pid},100,40,9,6,2", sample__1=f"{pid},200,60,9,8,4")
    points = await read(nvml)
    for task, share in (("general", 0.5), ("encoder", 0.07), ("decoder", 0.03)):
        assert one(points, "hw.gpu.process.utilization", **{"hw.gpu.task": task, "process.pid": pid}).value == pytest.approx(share)


async def test_a_sample_is_counted_once(nvml: StandInNvml) -> None:
    pid = os.getpid()
    nvml.gpu(compute__0=f"{pid},{GIB}", sample__0=f"{pid},100,40,9,6,2")
    kept = Kept()
    config = GpuMetricsConfig(library=str(nvml.library), interval_s=0.05)
    async with receiving(GpuMetricsReceiver("gpu_metrics", config, make_context()), kept):
        await kept.wait_for(3)
    assert len(found(kept.points(), "hw.gpu.process.utilization", **{"hw.gpu.task": "general"})) == 1


async def test_of_too_many_processes_the_biggest_are_told(nvml: StandInNvml) -> None:
    nvml.gpu(**{f"compute__{n}": f"{4_000_000 + n},{(n + 1) * GIB}" for n in range(5)})
    told = {point.value for point in found(await read(nvml, most_processes=2), "hw.gpu.process.memory.usage")}
    assert told == {5 * GIB, 4 * GIB}


async def test_a_process_that_is_not_here_is_told_by_its_number_and_the_workers_gpu(nvml: StandInNvml) -> None:
    """As in a container that counts its processes by itself: its numbers mean nothing here."""
    nvml.gpu(compute__0=f"4194304,{GIB}")
    point = one(await read(nvml, worker_of_gpu={0: "worker-001"}), "hw.gpu.process.memory.usage")
    assert "process.executable.name" not in point.attributes
    assert point.resource["worker_id"] == "worker-001"
