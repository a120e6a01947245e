"""One GPU, asked everything that NVML can say of it: an answer, or none where it has none, or its failure by name.

Part of the process of `gpu_metrics_nvml.py`, which says how it is run; values are as NVML gives them, in its units.
"""

from __future__ import annotations

from typing import Any

import pynvml

Json = dict[str, Any]

GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
"""The driver is away, or another one than this process has loaded: only a new process can go on."""
_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND})
_ABSENT = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
    }
)
"""This GPU, this driver or this user does not have it: no failure."""
_MOST_PROCESSES = 256
_ALL_LINKS = 0xFFFFFFFF
_CLOCKS = {
    "graphics": pynvml.NVML_CLOCK_GRAPHICS,
    "sm": pynvml.NVML_CLOCK_SM,
    "memory": pynvml.NVML_CLOCK_MEM,
    "video": pynvml.NVML_CLOCK_VIDEO,
}
_FIELDS = {
    "memory_temperature": pynvml.NVML_FI_DEV_MEMORY_TEMP,
    "pcie_tx_bytes": pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES,
    "pcie_rx_bytes": pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES,
    "nvlink_tx_kib": (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, _ALL_LINKS),
    "nvlink_rx_kib": (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, _ALL_LINKS),
    "nvlink_crc": pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    "nvlink_replay": pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    "nvlink_recovery": pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
}
_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}
_NAMES: dict[int, str] = {
    value: name.removeprefix("NVML_ERROR_").lower()
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(value, int)
}


class DriverGone(Exception):
    """Nothing more can be asked in this process."""


class GpuLost(Exception):
    """This GPU answers nothing more; the others may."""


def error_name(code: int) -> str:
    return _NAMES.get(code, f"error_{code}")


class Device:
    """One device that is being read: what could be asked of it, and which questions failed."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.errors: dict[str, str] = {}

    def ask(self, name: str, *arguments: Any, of: Any = None) -> Any:
        """Return what NVML answers, or None; raise GpuLost or DriverGone where asking on is of no use."""
        try:
            return getattr(pynvml, f"nvmlDeviceGet{name}")(self.handle if of is None else of, *arguments)
        except pynvml.NVMLError as error:
            code = error.value
            if code in GONE:
                raise DriverGone(error_name(code)) from error
            if code in _LOST:
                raise GpuLost(error_name(code)) from error
            if code not in _ABSENT:
                self.errors[name] = error_name(code)
        except UnicodeDecodeError:
            self.errors[name] = "unreadable"
        return None

    def read(self, last_sample: int) -> Json:
        """Return everything that this device has; None where it has not."""
        utilization = self.ask("UtilizationRates")
        encoder, decoder = self.ask("EncoderUtilization"), self.ask("DecoderUtilization")
        read: Json = {
            "utilization": {
                "general": getattr(utilization, "gpu", None),
                "encoder": encoder[0] if encoder else None,
                "decoder": decoder[0] if decoder else None,
                "memory_controller": getattr(utilization, "memory", None),
            },
            "memory": self._memory(),
            "temperature_limit": {
                "slowdown": self.ask("TemperatureThreshold", pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
                "shutdown": self.ask("TemperatureThreshold", pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),
            },
            "temperature": {"gpu": self._temperature()},
            "power_mw": self.ask("PowerUsage"),
            "power_limit_mw": self.ask("EnforcedPowerLimit"),
            "energy_mj": self.ask("TotalEnergyConsumption"),
            "clock_mhz": {name: self.ask("ClockInfo", clock) for name, clock in _CLOCKS.items()},
            "clock_limit_mhz": {name: self.ask("MaxClockInfo", clock) for name, clock in _CLOCKS.items()},
            "throttle": self._first("CurrentClocksEventReasons", "CurrentClocksThrottleReasons"),
            "ecc": {
                "corrected": self.ask("TotalEccErrors", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_VOLATILE_ECC),
                "uncorrected": self.ask("TotalEccErrors", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
            },
            "rows": self._rows(),
            "pcie": self._pcie(),
            "nvlink": {},
            "fans": self._fans(),
            "mig": self._mig(),
        }
        self._put_fields(read)
        read["processes"] = self._processes(self.handle) if not read["mig"] else []
        read["samples"] = self._samples(last_sample)
        return read

    def _first(self, *names: str) -> Any:
        return next((found for name in names if (found := self.ask(name)) is not None), None)

    def _memory(self, of: Any = None) -> Json | None:
        memory = self.ask("MemoryInfo", of=of)
        return {"total": memory.total, "used": memory.used} if memory else None

    def _temperature(self) -> int | None:
        newer: int | None = self.ask("TemperatureV", pynvml.NVML_TEMPERATURE_GPU)
        return newer if newer is not None else self.ask("Temperature", pynvml.NVML_TEMPERATURE_GPU)

    def _rows(self) -> Json | None:
        rows = self.ask("RemappedRows")
        return dict(zip(("corrected", "uncorrected", "pending", "failed"), rows, strict=True)) if rows else None

    def _pcie(self) -> Json:
        return {
            "tx_kb_s": self.ask("PcieThroughput", pynvml.NVML_PCIE_UTIL_TX_BYTES),
            "rx_kb_s": self.ask("PcieThroughput", pynvml.NVML_PCIE_UTIL_RX_BYTES),
            "replays": self.ask("PcieReplayCounter"),
            "generation": self.ask("CurrPcieLinkGeneration"),
            "generation_limit": self.ask("MaxPcieLinkGeneration"),
            "width": self.ask("CurrPcieLinkWidth"),
            "width_limit": self.ask("MaxPcieLinkWidth"),
        }

    def _fans(self) -> list[int | None]:
        return [self.ask("FanSpeed_v2", fan) for fan in range(min(self.ask("NumFans") or 0, 16))]

    def _put_fields(self, read: Json) -> None:
        answers = self.ask("FieldValues", list(_FIELDS.values()))
        if answers is None:
            return
        found = {}
        for name, answer in zip(_FIELDS, answers, strict=True):
            if answer.nvmlReturn == pynvml.NVML_SUCCESS and answer.valueType in _MEMBERS:
                found[name] = getattr(answer.value, _MEMBERS[answer.valueType])
        read["temperature"]["memory"] = found.pop("memory_temperature", None)
        read["pcie"] |= {name.removeprefix("pcie_"): value for name, value in found.items() if name.startswith("pcie_")}
        read["nvlink"] = {name.removeprefix("nvlink_"): value for name, value in found.items() if name.startswith("nvlink_")}

    def _mig(self) -> list[Json]:
        mode = self.ask("MigMode")
        if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return []
        instances = []
        for index in range(min(self.ask("MaxMigDeviceCount") or 0, 16)):
            handle = self.ask("MigDeviceHandleByIndex", index)
            if handle is None:
                continue
            attributes = self.ask("Attributes_v2", of=handle)
            instances.append(
                {
                    "index": index,
                    "uuid": self.ask("UUID", of=handle),
                    "name": self.ask("Name", of=handle),
                    "gpu_instance": self.ask("GpuInstanceId", of=handle),
                    "compute_instance": self.ask("ComputeInstanceId", of=handle),
                    "multiprocessors": getattr(attributes, "multiprocessorCount", None),
                    "memory": self._memory(handle),
                    "processes": self._processes(handle),
                }
            )
        return instances

    def _processes(self, handle: Any) -> list[Json]:
        found: list[Json] = []
        for kind in ("compute", "graphics"):
            running = self.ask(f"{kind.title()}RunningProcesses_v3", of=handle) or []
            found += [{"pid": process.pid, "kind": kind, "used": process.usedGpuMemory} for process in running[:_MOST_PROCESSES]]
        return found

    def _samples(self, after: int) -> list[Json]:
        samples = (self.ask("ProcessUtilization", after) or [])[-16 * _MOST_PROCESSES :]
        return [
            {"pid": one.pid, "at": one.timeStamp, "general": one.smUtil, "encoder": one.encUtil, "decoder": one.decUtil} for one in samples
        ]
