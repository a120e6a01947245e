"""Metrics of NVIDIA GPUs, and an event for each Xid and each GPU that is lost, from NVML.

    process that asks NVML ──a line for each reading──▶ GpuMetricsReceiver ──▶ metrics
      (may hang, may be given up)  ──a line for each Xid──▶                ──▶ log records with `event_type`

A machine without a driver costs one line and a look every few minutes. What fails, hangs or is lost is said once, and once more when it is
back. Not here: NVML (`gpu_metrics_nvml.py`), its process (`gpu_metrics_process.py`), names and units (`gpu_metrics_points.py`), whose a
process is (`gpu_metrics_workers.py`), Xids in the kernel's log (`kmsg.py`). docs/gpu.md has the list of metrics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeInt

from emp_pipe.component import Arrival, Context, Intake
from emp_pipe.event_records import event_batch
from emp_pipe.hanging import StillHangs
from emp_pipe.readings import ReadingConfig, ReadingReceiver
from emp_pipe.receivers import gpu_metrics_points as points
from emp_pipe.receivers.gpu_metrics_process import NvmlFailure, NvmlProcess
from emp_pipe.receivers.gpu_metrics_workers import Owner, Owners
from emp_pipe.xid import EVENT_TYPE, facts_of

if TYPE_CHECKING:
    from emp_pipe._core import Batch

Json = dict[str, Any]
_LOOK_AGAIN_S = 300.0
_MOST_WAITING_EVENTS = 1000
_LAST_EVENTS_S = 1.0
"""How long a stop waits for events to be kept."""
_MOST_XID_KINDS = 256
_NO_DRIVER = frozenset({"library_not_found", "driver_not_loaded"})
_OUR_SHARE = 0.8
"""Of the time that a reading may take: for NVML; the rest is for names of processes."""


class GpuMetricsConfig(ReadingConfig):
    """Settings of GPU metrics."""

    library: str = Field("", description="NVML's library (libnvidia-ml.so.1), where neither the loader nor emp-pipe finds it.")
    most_processes: NonNegativeInt = Field(32, description="Of how many processes on a GPU memory and utilisation are told; 0: of none.")
    worker_of_gpu: Mapping[NonNegativeInt, str] = Field(
        default_factory=dict, description="GPU index to the worker_id of its processes, where they do not tell it themselves."
    )
    xid_events: bool = Field(
        True, description="Make an error event of each Xid (they are counted in any case). Off where `kmsg` or `journald` tells them."
    )


class GpuMetricsReceiver(ReadingReceiver):
    """Reads the GPUs of this machine."""

    config: GpuMetricsConfig
    scope = "emp_pipe.gpu_metrics"

    def __init__(self, id: str, config: GpuMetricsConfig, context: Context) -> None:
        super().__init__(id, config, context)
        self._nvml = NvmlProcess(config.library, self._take_xid)
        self._owners = Owners()
        self._events: asyncio.Queue[Json] = asyncio.Queue(_MOST_WAITING_EVENTS)
        self._xids: dict[tuple[str, int], int] = {}
        self._gpus: dict[str, Json] = {}
        """By uuid, who was here, and whether it is lost."""
        self._said = ""
        self._look_at_s = 0.0
        self._since_unix_nano = context.clock.unix_nano()
        self._left_out = context.metrics.counter(
            "gpu_events_left_out",
            unit="events",
            help="Events of GPUs that were not kept: too many waited for the buffer, or emp-pipe stopped meanwhile.",
            labels=["component"],
        ).labels(id)
        self._unkept = 0
        """Events that are filed and not known to be durable."""

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep_events(intake), name=f"{self.id}: events")
            await super().run(intake, started)
            keeping.cancel()

    async def end(self) -> None:
        await self._nvml.close()
        try:
            async with asyncio.timeout(_LAST_EVENTS_S):
                await self._events.join()
        except TimeoutError:
            self._left_out.inc(self._unkept)
            self.log.warning("%d events of GPUs were not kept before the stop", self._unkept)

    async def read(self) -> Sequence[Batch]:
        """Return one reading of all GPUs; where NVML does not answer, that those that were here do not."""
        now_s = self._context.clock.monotonic_s()
        if now_s < self._look_at_s:
            return []
        try:
            reading = await self._nvml.read(self.config.timeout_s * _OUR_SHARE)
        except NvmlFailure as failure:
            self._failed_by(failure, now_s)
            gpus = [gpu | {"lost": failure.kind} for gpu in self._gpus.values()]
            return self._batch(gpus, "", {})
        self._read_well.inc()
        if self._said:
            self.log.info("the GPUs answer again")
            self._said = ""
        gpus = self._compared(reading["gpus"])
        return self._batch(gpus, str(reading["driver"] or ""), await self._owners_of(gpus))

    def _batch(self, gpus: Sequence[Json], driver: str, owners: Mapping[int, Owner]) -> list[Batch]:
        readings = self.readings()
        said = points.Said(
            owners, self.config.worker_of_gpu, self._xids, self._since_unix_nano, _booted_unix_nano(), self.config.most_processes
        )
        for gpu in gpus:
            points.put(readings, gpu, driver, said)
        batch = self.to_batch(readings)
        return [batch] if batch is not None else []

    def _failed_by(self, failure: NvmlFailure, now_s: float) -> None:
        """Count and say why there is no reading: once, until there is one."""
        (self._hung if failure.kind in ("hung", "still_hangs") else self._failed).inc()
        never_seen = failure.kind == "unavailable" and str(failure) in _NO_DRIVER and not self._gpus
        if never_seen:
            self._look_at_s = now_s + _LOOK_AGAIN_S
        if self._said == failure.kind:
            return
        self._said = failure.kind
        if never_seen:
            self.log.info("no NVIDIA driver here (%s): no GPU metrics; looked for again every %.0f minutes", failure, _LOOK_AGAIN_S / 60)
        elif failure.kind == "unavailable":
            self.log.warning("the NVIDIA driver does not serve NVML (%s): no GPU metrics; tried again at every reading", failure)
        else:
            self.log.warning("no GPU metrics: %s; tried again at every reading, everything else goes on", failure)

    def _compared(self, gpus: Sequence[Json]) -> list[Json]:
        """Return the GPUs of a reading, those that were here before among them; say and file what became of each."""
        seen = {str(gpu["uuid"]) for gpu in gpus}
        missing = [gpu | {"lost": "not there any more"} for uuid, gpu in self._gpus.items() if uuid not in seen]
        for gpu in [*gpus, *missing]:
            uuid, lost = str(gpu["uuid"]), gpu.get("lost", "")
            was = self._gpus.get(uuid)
            self._gpus[uuid] = {key: gpu.get(key) for key in ("index", "uuid", "name", "serial", "vbios", "pci")} | {"lost": lost}
            if lost and not (was and was["lost"]):
                self._tell(gpu, logging.WARNING, "error_gpu_lost", f"{_name(gpu)} is lost: {lost}")
            elif was and was["lost"] and not lost:
                self._tell(gpu, logging.INFO, "custom_gpu_found", f"{_name(gpu)} is back")
            for question, error in (gpu.get("errors") or {}).items():
                self.said.warning(f"{uuid}:{question}", "%s: NVML's %s answers %s; the rest is read", _name(gpu), question, error)
        return [*gpus, *missing]

    async def _owners_of(self, gpus: Sequence[Json]) -> Mapping[int, Owner]:
        pids = [process["pid"] for gpu in gpus for process in gpu.get("processes") or ()]
        pids += [process["pid"] for gpu in gpus for instance in gpu.get("mig") or () for process in instance["processes"]]
        if not pids or not self.config.most_processes:
            return {}
        try:
            return await self.calls.call("the names of processes", lambda: self._owners.of(pids), self.config.timeout_s * (1 - _OUR_SHARE))
        except (TimeoutError, StillHangs):
            return {}

    # --- events --------------------------------------------------------------------------------------------

    def _take_xid(self, said: Json) -> None:
        """Count an Xid, and file it as an event."""
        uuid, number = str(said.get("uuid")), int(said["xid"])
        if (uuid, number) in self._xids or len(self._xids) < _MOST_XID_KINDS:
            self._xids[uuid, number] = self._xids.get((uuid, number), 0) + 1
        facts = facts_of(number)
        message = f"{_name(said)} reports Xid {number}: {facts.meaning}"
        if self.config.xid_events:
            more = {
                "xid.number": number,
                "xid.pci_address": said.get("pci"),
                "xid.mig_instance": said.get("gpu_instance"),
                "xid.meaning": facts.meaning,
                "xid.action": facts.action,
            }
            self._tell(said, logging.WARNING, EVENT_TYPE, message, more)
        else:
            self.said.warning(message, "%s", message)

    def _tell(self, gpu: Json, level: int, event_type: str, message: str, more: Json | None = None) -> None:
        """Log what happened to a GPU, and file it as an event."""
        self.said.log(level, message, "%s", message)
        event = {
            "timestamp": self._context.clock.unix_nano(),
            "level": "error" if level >= logging.WARNING else "info",
            "message": message,
            "event_type": event_type,
            "hw.id": str(gpu.get("uuid")),
            "gpu.index": gpu.get("index"),
        }
        event = {key: value for key, value in (event | (more or {})).items() if value is not None}
        try:
            self._events.put_nowait(event)
            self._unkept += 1
        except asyncio.QueueFull:
            self._left_out.inc()
            self.said.warning("events", "events of GPUs are left out: %d wait to be kept", _MOST_WAITING_EVENTS)

    async def _keep_events(self, intake: Intake) -> None:
        while True:
            events = [await self._events.get()]
            while not self._events.empty():
                events.append(self._events.get_nowait())
            batch = event_batch(events, normalizer=self._normalizer, tag="gpu", now_unix_nano=self._context.clock.unix_nano())
            if batch is not None:
                await self.keep(intake, Arrival(receiver=self.id, batch=batch, received=batch.record_count))
            self._unkept -= len(events)
            for _ in events:
                self._events.task_done()


def _name(gpu: Json) -> str:
    where = ", ".join(str(gpu[key]) for key in ("name", "pci") if gpu.get(key))
    return f"gpu{gpu.get('index')}" + (f" ({where})" if where else "")


def _booted_unix_nano() -> int:
    """Return when this machine was started; the driver's counters begin then, or later: 0 where it is not told."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/stat").read_text().splitlines():
            if line.startswith("btime "):
                return int(line.split()[1]) * 1_000_000_000
    return 0


CONFIG = GpuMetricsConfig
COMPONENT = GpuMetricsReceiver
