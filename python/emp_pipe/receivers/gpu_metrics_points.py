"""One reading of NVML as metrics, by OpenTelemetry's `hw.*` conventions: which of NVML's values is which instrument, in which unit.

What the conventions have no word for is named in their manner (`hw.gpu.clock.frequency`); docs/gpu.md lists all of them. What a GPU does
not have is left out. Reads nothing itself: the lines are `gpu_metrics_nvml.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emp_pipe.readings import Readings, Scalar
from emp_pipe.receivers.gpu_metrics_workers import Owner

Json = dict[str, Any]
Attributes = dict[str, Scalar]

THROTTLES = {
    "gpu_idle": 0x1,
    "applications_clocks": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake": 0x80,
    "display_clock": 0x100,
    "board_limit": 0x200,
    "reliability": 0x400,
}
STATES = ("ok", "degraded", "failed")
_PROCESS_TASKS = ("general", "encoder", "decoder")


@dataclass(slots=True)
class Said:
    """What is known beside a reading: whose processes are whose, which Xids came, and since when counters count."""

    owners: Mapping[int, Owner] = field(default_factory=dict)
    worker_of_gpu: Mapping[int, str] = field(default_factory=dict)
    xids: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """By GPU and Xid, how often since `since_unix_nano`."""
    since_unix_nano: int = 0
    """When this receiver began: what it counts itself."""
    boot_unix_nano: int = 0
    """When the driver can have begun to count, at the earliest."""
    most_processes: int = 0


def put(readings: Readings, gpu: Json, driver: str, said: Said) -> None:
    """Take all that one GPU says into the readings."""
    _Writer(readings, gpu, driver, said).put()


class _Writer:
    def __init__(self, readings: Readings, gpu: Json, driver: str, said: Said) -> None:
        self.readings = readings
        self.gpu = gpu
        self.said = said
        self.uuid = str(gpu["uuid"])
        self.name = f"gpu{gpu['index']}"
        self.who: Attributes = {"hw.id": self.uuid, "hw.name": self.name, "hw.vendor": "NVIDIA", "gpu.index": int(gpu["index"])}
        known = {"hw.model": "name", "hw.serial_number": "serial", "hw.firmware_version": "vbios"}
        self.who |= {key: str(gpu[value]) for key, value in known.items() if gpu.get(value)}
        if driver:
            self.who["hw.driver_version"] = driver
        self.typed = self.who | {"hw.type": "gpu"}

    def put(self) -> None:
        self._state()
        for (uuid, xid), count in self.said.xids.items():
            if uuid == self.uuid:
                self._errors(f"xid_{xid}", count, self.said.since_unix_nano)
        if self.gpu.get("lost"):
            return
        self._use()
        self._power_and_heat()
        self._clocks()
        self._faults()
        self._traffic()
        for instance in self.gpu.get("mig") or ():
            self._instance(instance)
        self._processes(self.gpu.get("processes") or [], self.uuid, self.name)

    # --- each kind of value -----------------------------------------------------------------------------

    def _gauge(self, name: str, value: Any, unit: str, attributes: Attributes, *, times: float = 1) -> None:
        if value is not None:
            self.readings.gauge(name, value * times, unit, attributes)

    def _total(self, name: str, value: Any, unit: str, attributes: Attributes, *, times: float = 1) -> None:
        if value is not None:
            self.readings.counter(name, value * times, unit, attributes, since_unix_nano=self.said.boot_unix_nano)

    def _amount(self, name: str, value: Any, unit: str, attributes: Attributes) -> None:
        if value is not None:
            self.readings.up_down_counter(name, value, unit, attributes)

    def _errors(self, kind: str, count: Any, since_unix_nano: int) -> None:
        if count is not None:
            self.readings.counter("hw.errors", count, "{error}", self.typed | {"error.type": kind}, since_unix_nano=since_unix_nano)

    def _part(self, kind: str, name: str, **more: Scalar) -> Attributes:
        """Return the attributes of a sensor or a fan of this GPU: a component of its own, with the GPU as its parent."""
        whose: Attributes = {"hw.id": f"{self.uuid}/{name}", "hw.name": f"{self.name} {name}", "hw.parent": self.uuid}
        return whose | {"hw.type": kind, "gpu.index": int(self.gpu["index"])} | more

    # --- what a GPU says ----------------------------------------------------------------------------------

    def _state(self) -> None:
        rows = self.gpu.get("rows") or {}
        degraded = bool(self.gpu.get("errors") or rows.get("pending") or rows.get("failed"))
        state = "failed" if self.gpu.get("lost") else "degraded" if degraded else "ok"
        for each in STATES:
            self.readings.up_down_counter("hw.status", int(each == state), "1", self.typed | {"hw.state": each})

    def _use(self) -> None:
        utilization = self.gpu["utilization"]
        for task in _PROCESS_TASKS:
            self._gauge("hw.gpu.utilization", utilization[task], "1", self.who | {"hw.gpu.task": task}, times=0.01)
        self._gauge("hw.gpu.memory.controller.utilization", utilization["memory_controller"], "1", self.who, times=0.01)
        self._memory(self.gpu["memory"], self.who)

    def _memory(self, memory: Json | None, attributes: Attributes) -> None:
        if memory is None:
            return
        self._amount("hw.gpu.memory.limit", memory["total"], "By", attributes)
        self._amount("hw.gpu.memory.usage", memory["used"], "By", attributes)
        if memory["total"]:
            self._gauge("hw.gpu.memory.utilization", memory["used"] / memory["total"], "1", attributes)

    def _power_and_heat(self) -> None:
        gpu = self.gpu
        for where, degrees in gpu["temperature"].items():
            self._gauge(
                "hw.temperature", degrees, "Cel", self._part("temperature", f"temperature/{where}", **{"hw.sensor_location": where})
            )
        for limit, kind in (("slowdown", "high.degraded"), ("shutdown", "high.critical")):
            attributes = self._part("temperature", "temperature/gpu", **{"hw.sensor_location": "gpu", "hw.limit_type": kind})
            self._gauge("hw.temperature.limit", gpu["temperature_limit"][limit], "Cel", attributes)
        self._gauge("hw.power", gpu["power_mw"], "W", self.typed, times=0.001)
        self._gauge("hw.power.limit", gpu["power_limit_mw"], "W", self.typed, times=0.001)
        self._total("hw.energy", gpu["energy_mj"], "J", self.typed, times=0.001)
        for fan, percent in enumerate(gpu["fans"]):
            self._gauge("hw.fan.speed_ratio", percent, "1", self._part("fan", f"fan/{fan}"), times=0.01)

    def _clocks(self) -> None:
        for name, limit in (("clock_mhz", ""), ("clock_limit_mhz", ".limit")):
            for clock, mhz in self.gpu[name].items():
                attributes = self.who | {"hw.gpu.clock": clock}
                self._gauge(f"hw.gpu.clock.frequency{limit}", None if mhz is None else mhz * 1_000_000, "Hz", attributes)
        reasons = self.gpu["throttle"]
        if reasons is not None:
            for reason, bit in THROTTLES.items():
                self._amount("hw.gpu.throttled", int(bool(reasons & bit)), "1", self.who | {"hw.gpu.throttle.reason": reason})

    def _faults(self) -> None:
        gpu, since = self.gpu, self.said.boot_unix_nano
        for kind in ("corrected", "uncorrected"):
            self._errors(kind, gpu["ecc"][kind], since)
        for kind in ("crc", "replay", "recovery"):
            self._errors(f"nvlink_{kind}", gpu["nvlink"].get(kind), since)
        self._errors("pcie_replay", gpu["pcie"]["replays"], since)
        if gpu["rows"] is not None:
            for kind in ("corrected", "uncorrected"):
                self._amount("hw.gpu.memory.remapped_rows", gpu["rows"][kind], "{row}", self.who | {"error.type": kind})

    def _traffic(self) -> None:
        pcie, nvlink = self.gpu["pcie"], self.gpu["nvlink"]
        for short, direction in (("tx", "transmit"), ("rx", "receive")):
            way: Attributes = self.who | {"network.io.direction": direction}
            self._total("hw.gpu.io", pcie.get(f"{short}_bytes"), "By", way | {"hw.gpu.interconnect": "pcie"})
            self._total("hw.gpu.io", nvlink.get(f"{short}_kib"), "By", way | {"hw.gpu.interconnect": "nvlink"}, times=1024)
            self._gauge("hw.gpu.pcie.throughput", pcie[f"{short}_kb_s"], "By/s", way, times=1000)
        for what, unit in (("generation", "1"), ("width", "{lane}")):
            self._gauge(f"hw.gpu.pcie.link.{what}", pcie[what], unit, self.who)
            self._gauge(f"hw.gpu.pcie.link.{what}.limit", pcie[f"{what}_limit"], unit, self.who)

    def _instance(self, instance: Json) -> None:
        uuid, name = str(instance["uuid"]), f"{self.name}/mig{instance['index']}"
        attributes = self.who | {"hw.id": uuid, "hw.name": name, "hw.parent": self.uuid}
        if instance["name"]:
            attributes["hw.model"] = str(instance["name"])
        for key in ("gpu_instance", "compute_instance"):
            if instance[key] is not None:
                attributes[f"hw.gpu.mig.{key}"] = int(instance[key])
        self._memory(instance["memory"], attributes)
        self._gauge("hw.gpu.mig.multiprocessors", instance["multiprocessors"], "{multiprocessor}", attributes)
        self._processes(instance["processes"], uuid, name)

    # --- who uses it ----------------------------------------------------------------------------------------

    def _processes(self, processes: list[Json], uuid: str, name: str) -> None:
        used: dict[tuple[int, str], int | None] = {}
        for process in processes:
            used[process["pid"], process["kind"]] = process["used"]
        biggest = sorted(used.items(), key=lambda item: -(item[1] or 0))[: self.said.most_processes]
        for (pid, kind), bytes_used in biggest:
            if bytes_used is not None:
                attributes, resource = self._of_process(pid, uuid, name)
                more = attributes | {"hw.gpu.process.kind": kind}
                self.readings.up_down_counter("hw.gpu.process.memory.usage", bytes_used, "By", more, resource=resource)
        self._shares({pid for (pid, _), _ in biggest}, uuid, name)

    def _shares(self, pids: set[int], uuid: str, name: str) -> None:
        """Take what each process used of the GPU's time since the last reading: the mean of what the driver sampled."""
        samples: dict[int, list[Json]] = {}
        for sample in self.gpu.get("samples") or ():
            if sample["pid"] in pids:
                samples.setdefault(sample["pid"], []).append(sample)
        for pid, of_pid in samples.items():
            attributes, resource = self._of_process(pid, uuid, name)
            for task in _PROCESS_TASKS:
                mean = sum(min(sample[task], 100) for sample in of_pid) / len(of_pid)
                self.readings.gauge("hw.gpu.process.utilization", mean * 0.01, "1", attributes | {"hw.gpu.task": task}, resource=resource)

    def _of_process(self, pid: int, uuid: str, name: str) -> tuple[Attributes, Attributes]:
        """Return the attributes of a process' points, and what their resource says of its worker."""
        owner = self.said.owners.get(pid, Owner())
        index = int(self.gpu["index"])
        attributes: Attributes = {"hw.id": uuid, "hw.name": name, "gpu.index": index, "process.pid": pid}
        if owner.executable:
            attributes["process.executable.name"] = owner.executable
        worker_id = owner.worker_id or self.said.worker_of_gpu.get(index, "")
        resource = {"worker_id": worker_id, "service_type": owner.service_type, "service.name": owner.service}
        return attributes, {key: value for key, value in resource.items() if value}
