"""NVIDIA's Xid messages: what the driver writes into the kernel's log when a GPU, its memory or its link fails, as an error event.

    NVRM: Xid (PCI:0000:65:00): 79, pid=1234, name=python3, GPU has fallen off the bus.

`event_of` reads one message of a kernel's stream (who may write elsewhere could else make up such events), `marked` a batch of its rows.
The words say what an operator of rented machines can do about it. Source of the numbers: NVIDIA's "Xid Errors".
Not here: where messages come from; the same numbers from NVML (`receivers/gpu_metrics.py`), which makes the same events of them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from emp_pipe._core import Batch

EVENT_TYPE = "error_xid"
_MARK = "NVRM: Xid ("
_MESSAGE = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)(?:\s+GPU-I:\s*(\w{1,8}))?[^)]{0,64}\):\s*"
    r"(\d{1,5})(?:,\s*(.*))?",
    re.DOTALL,
)
_PID = re.compile(r"\bpid='?(\d{1,10})")
_NAME = re.compile(r"\bname=([^,\n]{1,128})")
_MOST_DETAIL = 512
_ERROR = 17
"""OTLP's severity number."""


class XidFacts(NamedTuple):
    """What a number means, and what helps."""

    meaning: str
    action: str


_APPLICATION = "look at the application first: restart its job; if other applications see it too, reset the GPU"
_RESET = "stop what runs on this GPU and reset it (nvidia-smi --gpu-reset), or reboot the machine"
_REPLACE = "take the machine out of service and have the GPU examined; on a rented machine, ask for another"
_RESTART_JOB = "restart the application that was hit; the GPU goes on working"
_DRIVER = "reboot the machine; if it comes again, update the driver or report it to NVIDIA with nvidia-bug-report.sh"

FACTS: dict[int, XidFacts] = {
    8: XidFacts("the GPU stopped processing: a channel timed out", _APPLICATION),
    13: XidFacts("graphics engine exception: usually an invalid access by the application", _APPLICATION),
    31: XidFacts("memory page fault: the application used an address that it may not", _APPLICATION),
    32: XidFacts(
        "invalid or corrupted push buffer stream", "check the PCIe link and seating if several applications see it; else the driver"
    ),
    38: XidFacts("driver firmware error", _DRIVER),
    43: XidFacts("the GPU stopped processing a channel: the application's own fault ended it", _RESTART_JOB),
    44: XidFacts("graphics engine fault during a context switch", _RESET),
    45: XidFacts("channels were torn down: a consequence of the application's end or of an error before this one", _RESTART_JOB),
    46: XidFacts("the GPU stopped processing", _RESET),
    48: XidFacts("double-bit ECC error: memory that could not be corrected", _RESET + "; if it comes again, " + _REPLACE),
    54: XidFacts(
        "auxiliary power is not connected to the GPU board", "check the power cables of the GPU; on a rented machine, ask for another"
    ),
    56: XidFacts("display engine error", _DRIVER),
    57: XidFacts("error in programming the video memory interface", _REPLACE),
    61: XidFacts("internal micro-controller breakpoint or warning", _RESET),
    62: XidFacts("internal micro-controller halt", _RESET),
    63: XidFacts(
        "ECC page retirement or row remapping was recorded", "drain the GPU and reset it soon, so that the remapping takes effect"
    ),
    64: XidFacts("ECC page retirement or row remapping failed", _REPLACE),
    68: XidFacts("video processor exception", _APPLICATION),
    69: XidFacts("graphics engine class error", _APPLICATION),
    73: XidFacts("video encoder error", _APPLICATION),
    74: XidFacts(
        "NVLink error", "check the other GPUs of the link; reset all of them together, and have the machine examined if it comes again"
    ),
    79: XidFacts(
        "the GPU has fallen off the bus", "power-cycle the machine; if it comes again, check power, heat and PCIe, or " + _REPLACE
    ),
    92: XidFacts("high rate of single-bit ECC errors", "watch it; " + _REPLACE + " if it goes on"),
    94: XidFacts("contained ECC error: only the application that used the memory was hit", _RESTART_JOB + "; reset it when it is idle"),
    95: XidFacts("uncontained ECC error: every application on the GPU may be hit", _RESET),
    109: XidFacts("context switch timed out", _RESET),
    110: XidFacts("security fault", _REPLACE),
    119: XidFacts("the GPU's system processor (GSP) did not answer in time", _RESET + "; if it comes again, update the driver"),
    120: XidFacts("error of the GPU's system processor (GSP)", _RESET + "; if it comes again, update the driver"),
    121: XidFacts("corrected error of the chip-to-chip link", "nothing to do while it is rare; reset the GPU when it is idle"),
    122: XidFacts("SPI error while programming", _DRIVER),
    123: XidFacts("error of the power management unit", _RESET),
    136: XidFacts("link training failed", _RESET),
    137: XidFacts("NVLink privilege error: often a bad access across GPUs", _APPLICATION),
    140: XidFacts("ECC error that was not recovered", _RESET),
    143: XidFacts("the GPU did not initialise", _REPLACE),
    144: XidFacts("NVLink error (SAW)", _RESET),
    145: XidFacts("NVLink error (RLW)", _RESET),
    146: XidFacts("NVLink error (TLW)", _RESET),
    147: XidFacts("NVLink error (TREX)", _RESET),
    148: XidFacts("NVLink error (NVLPW_CTRL)", _RESET),
    149: XidFacts("NVLink error (NETIR)", _RESET),
    150: XidFacts("NVLink error (MSE)", _RESET),
    154: XidFacts(
        "the driver says what recovery the GPU needs", "do what the message asks for: reset the GPU, drain it, or reboot the node"
    ),
}
_UNKNOWN = XidFacts("an error that this version has no words for", "look the number up in NVIDIA's list of Xid errors; " + _RESET)


def facts_of(number: int) -> XidFacts:
    """Return what a number means, and what helps."""
    return FACTS.get(number, _UNKNOWN)


def event_of(message: str) -> dict[str, Any] | None:
    """Return what makes a kernel's message an error event: fields to be put over those of its record. None: it is no Xid.

    `xid.number`, `xid.pci_address` (as the driver writes it), `xid.meaning`, `xid.action`; the process where the driver names one."""
    if _MARK not in message:
        return None
    found = _MESSAGE.search(message)
    if found is None:
        return None
    address, instance, number, detail = found[1], found[2], int(found[3]), found[4] or ""
    facts = facts_of(number)
    event: dict[str, Any] = {
        "level": "error",
        "event_type": EVENT_TYPE,
        "xid.number": number,
        "xid.pci_address": address.lower(),
        "xid.meaning": facts.meaning,
        "xid.action": facts.action,
    }
    if instance:
        event["xid.mig_instance"] = instance
    if pid := _PID.search(detail[:_MOST_DETAIL]):
        event["process.pid"] = int(pid[1])
    name = _NAME.search(detail[:_MOST_DETAIL])
    if name and not name[1].startswith(("<", "'<")):
        event["process.executable.name"] = name[1].strip()
    return event


def marked(batch: Batch, *, facility: str | None = None) -> Batch:
    """Return rows of a kernel's stream with their Xid messages made error events; the very batch that was given where there is none.

    `facility`: only rows of this one of syslog."""
    marks = []
    for row in batch.rows_with(_MARK.encode()):
        said = json.loads(batch.slice(row, row + 1).to_json_lines())
        if facility is not None and said.get("syslog.facility") != facility:
            continue
        if (event := event_of(str(said.get("message", "")))) is not None:
            del event["level"]
            marks.append((row, event))
    return batch.marked(marks, severity_number=_ERROR, severity_text="error") if marks else batch
