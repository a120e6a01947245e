"""What NVML says of this machine's GPUs, asked in a process of its own: a JSON line for each line that it is sent, and one for each Xid.

Run as `python -m emp_pipe.receivers.gpu_metrics_nvml [LIBRARY]`. A call into the driver may hang where no signal reaches it, and keeps
what its process holds; so this one holds nothing of the edge's, and the edge can give it up (docs/decisions/017-nvml-process.md). It ends
when its standard input does, also while a call hangs. Values are as NVML gives them, in its units; what a GPU does not have is left out.
Not here: metrics (`gpu_metrics_points.py`), who starts it (`gpu_metrics_process.py`). It has to be small: nothing else of
emp-pipe is imported but what asks one device (`gpu_metrics_device.py`).
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml

from emp_pipe.receivers.gpu_metrics_device import GONE, Device, DriverGone, GpuLost, Json, error_name

_WHERE_CONTAINERS_HAVE_IT = ("/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/run/opengl-driver/lib", "/usr/lib64-nvidia")
_SONAME = "libnvidia-ml.so.1"
_MOST_GPUS = 64
_NO_INSTANCE = 0xFFFFFFFF
_WAIT_MS = 2000


class Reader:
    """NVML from its beginning to its end in this process."""

    def __init__(self) -> None:
        self._known: dict[int, Json] = {}
        """By index, who a GPU is: one that is lost does not say any more."""
        self._last_sample: dict[str, int] = {}
        self.watched_changed = threading.Event()

    def begin(self, library: str) -> None:
        """Load the library and the driver. Raises NVMLError."""
        if library:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # whoever asks for its soname is given this one from now on
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND or not (found := _elsewhere()):
                raise
            ctypes.CDLL(found, mode=ctypes.RTLD_GLOBAL)
            pynvml.nvmlInit()

    def read(self) -> Json:
        """Return all GPUs. Raises DriverGone."""
        try:
            driver = pynvml.nvmlSystemGetDriverVersion()
            count = min(pynvml.nvmlDeviceGetCount(), _MOST_GPUS)
        except pynvml.NVMLError as error:
            raise DriverGone(error_name(error.value)) from error
        gpus = [self._read_one(index) for index in range(count)]
        return {"kind": "reading", "driver": driver, "gpus": gpus}

    def _read_one(self, index: int) -> Json:
        gpu = Device(None)
        try:
            handle = gpu.handle = gpu.ask("HandleByIndex", of=index)
            if handle is None:
                return self._silent(index, gpu)
            uuid = gpu.ask("UUID")
            if uuid is None:
                return self._silent(index, gpu)
            if self._known.get(index, {}).get("uuid") != uuid:
                self._known[index] = {
                    "index": index,
                    "uuid": uuid,
                    "name": gpu.ask("Name"),
                    "serial": gpu.ask("Serial"),
                    "vbios": gpu.ask("VbiosVersion"),
                    "pci": _pci(gpu.ask("PciInfo_v3")),
                }
                self.watched_changed.set()
            read = gpu.read(self._last_sample.get(uuid, 0))
        except GpuLost as lost:
            return self._known.get(index, {"index": index, "uuid": f"gpu{index}"}) | {"lost": str(lost)}
        if read["samples"]:
            self._last_sample[uuid] = max(sample["at"] for sample in read["samples"])
        return self._known[index] | read | {"errors": gpu.errors}

    def _silent(self, index: int, gpu: Device) -> Json:
        return self._known.get(index, {"index": index, "uuid": f"gpu{index}"}) | {"lost": next(iter(gpu.errors.values()), "not_found")}

    def xids(self) -> Iterator[Json]:
        """Yield every Xid as it happens, until the driver is gone. Waits in NVML: for a thread of its own."""
        while True:
            self.watched_changed.wait()
            self.watched_changed.clear()
            try:
                events, watched = self._register()
            except pynvml.NVMLError:
                return  # no events here, as in WSL
            while watched and not self.watched_changed.is_set():
                try:
                    data = pynvml.nvmlEventSetWait_v2(events, _WAIT_MS)
                except pynvml.NVMLError as error:
                    if error.value in GONE:
                        return
                    if error.value != pynvml.NVML_ERROR_TIMEOUT:
                        time.sleep(_WAIT_MS / 1000)  # a lost GPU makes it answer at once
                    continue
                gpu = watched.get(ctypes.cast(data.device, ctypes.c_void_p).value or 0, {})
                instance = data.gpuInstanceId
                yield {
                    "kind": "xid",
                    **{key: gpu.get(key) for key in ("index", "uuid", "name", "pci")},
                    "xid": data.eventData,
                    "gpu_instance": None if instance == _NO_INSTANCE else instance,
                }
            pynvml.nvmlEventSetFree(events)

    def _register(self) -> tuple[Any, dict[int, Json]]:
        events = pynvml.nvmlEventSetCreate()
        watched: dict[int, Json] = {}
        for index, gpu in list(self._known.items()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
            except pynvml.NVMLError:
                continue  # it has none, or is lost: its readings say so
            watched[ctypes.cast(handle, ctypes.c_void_p).value or 0] = gpu
        return events, watched


def _pci(info: Any) -> str | None:
    """Return where a GPU is on the bus, as the driver writes it into the kernel's log: 0000:41:00."""
    identifier = getattr(info, "busId", None)
    if not isinstance(identifier, bytes | str):
        return None
    text = identifier.decode("ascii", "replace") if isinstance(identifier, bytes) else identifier
    return text.lower().partition(".")[0].removeprefix("0000")


def _elsewhere() -> str:
    """Return where the library lies on machines whose loader has not been told, or "" """
    return next((str(path) for folder in _WHERE_CONTAINERS_HAVE_IT if (path := Path(folder) / _SONAME).is_file()), "")


class _Answers:
    """Lines to who started this process; nothing else may write between them, the driver's library included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file = os.fdopen(os.dup(1), "wb")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def write(self, answer: Json) -> None:
        with self._lock:
            self._file.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
            self._file.flush()


def _answer(reader: Reader, answers: _Answers, asked: queue.SimpleQueue[bytes], library: str) -> None:
    """Answer what is asked, until the driver is away."""
    try:
        try:
            reader.begin(library)
        except OSError as error:  # a library was named that cannot be loaded
            answers.write({"kind": "unavailable", "reason": "library_not_found", "text": str(error)})
            return
        except pynvml.NVMLError as error:
            answers.write({"kind": "unavailable", "reason": error_name(error.value)})
            return
        _thread(_watch, reader, answers)
        while True:
            asked.get()
            answers.write(reader.read())
    except DriverGone as gone:
        answers.write({"kind": "unavailable", "reason": str(gone)})


def _watch(reader: Reader, answers: _Answers) -> None:
    for xid in reader.xids():
        answers.write(xid)


def _thread(work: Callable[..., None], *arguments: Any) -> None:
    def run() -> None:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            if work is not _watch or code:
                os._exit(code)

    threading.Thread(target=run, daemon=True).start()


def main() -> None:
    """Answer until standard input ends, whatever hangs."""
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    _thread(_answer, Reader(), _Answers(), asked, sys.argv[1] if len(sys.argv) > 1 else "")
    while line := sys.stdin.buffer.readline():
        asked.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
